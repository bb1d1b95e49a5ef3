"""documents + ledger + tokenizer -> token shards, split into train and validation by repository."""

from tokenizer.command_line import run


def main(
    *,
    documents: str,
    ledger: str,
    tokenizer: str,
    output: str,
    validation_share: float = 0.02,
    shard_bytes: int = 256 << 20,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Tokenize the kept documents into Arrow IPC shards. `index.json` is written last.

    Args:
        documents: table of documents.
        ledger: table of states; the kept files become shards.
        tokenizer: folder with a `tokenizer.json`.
        output: folder of the shards, on a file system that all workers share.
        validation_share: share of the kept bytes to hold out, in whole repositories, in [0, 0.5].
        shard_bytes: text that a shard holds, about; its tokens take some 60 % of that.
        seed: of the order of documents and of the choice of held-out repositories.
        overwrite: replace what lies there.
    """
    from spark_jobs import sharding, tables
    from spark_jobs.session import start_session, step

    tables.require_made_from(ledger, documents=documents)
    tables.require_apart(output, {"documents": documents, "ledger": ledger, "tokenizer": tokenizer})
    configuration = sharding.configuration(documents, ledger, tokenizer, validation_share, shard_bytes, seed)
    if sharding.done(output, configuration, overwrite):
        return
    with sharding.replacing(output), start_session("write_shards") as spark:
        kept = tables.read(spark, ledger, "ledger").where("state = 'kept'")
        with step(spark, "write_shards: choosing the held-out repositories"):
            layout = sharding.layout_of(kept, validation_share, shard_bytes, seed)
        with step(spark, "write_shards: tokenizing and writing"):
            index = sharding.write(kept, documents, tokenizer, output, layout, configuration)
    print(sharding.summary(index, output))


if __name__ == "__main__":
    run(main)
