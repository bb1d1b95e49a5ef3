"""Token shards in the formats of other trainers: each module writes one, document by document, in bounded memory."""
