"""Kept documents to token shards: who is held out, where a document goes, how tokens get there, exactly once.

All of it is a function of a document's id and repository, of the seed and of sums over the ledger: the same shards,
byte by byte, from any number of partitions and after any retry. Content is read by the workers where it lies; what
they encode lies in the folder of the shards until these are written (runs.py), and never enters the JVM.
"""
