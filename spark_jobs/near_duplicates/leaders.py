"""Leader selection: walk the files from best to worst and keep each that is not similar to one already kept.

That is the lexicographically first maximal independent set of the similarity graph. It is computed in rounds
(Blelloch, Fineman and Shun 2012: logarithmically many for random orders): files without a better neighbour are kept,
their neighbours are removed, and the rest goes into the next round. Nothing is collected on the driver.
"""

import itertools
from collections.abc import Callable
from functools import reduce

from pyspark.sql import DataFrame
from pyspark.sql import functions as F


def removals_of(edges: DataFrame, staged: Callable[[DataFrame, str], DataFrame]) -> DataFrame:
    """The removed files and why: rows (worse, better, similarity) where `better` is kept, one a removed file.

    Args:
        edges: all similar pairs (better, worse, similarity); keys sort from best to worst.
        staged: writes rows under a name and reads them back, so that no round recomputes an earlier one.

    Of several kept neighbours the most similar is named, then the best.
    """
    removed: list[DataFrame] = []
    undecided = edges.select("better", "worse")
    for number in itertools.count():
        with_better = undecided.select(F.col("worse").alias("key")).distinct()
        kept = undecided.select(F.col("better").alias("key")).distinct().join(with_better, "key", "left_anti")
        losers = undecided.join(kept, undecided.better == kept.key, "left_semi").select("worse").distinct()
        losers = staged(losers, f"removed-{number}")
        removed.append(losers)
        for side in ("worse", "better"):
            undecided = undecided.join(losers.select(F.col("worse").alias(side)), side, "left_anti")
        undecided = staged(undecided, f"undecided-{number}")
        if undecided.isEmpty():
            break
    every = reduce(DataFrame.unionAll, removed)
    proofs = edges.join(every, "worse", "left_semi").join(
        every.select(F.col("worse").alias("better")), "better", "left_anti"
    )
    closest = F.min(F.struct((-F.col("similarity")).alias("distance"), "better")).alias("closest")
    chosen = proofs.groupBy("worse").agg(closest)
    return chosen.select(
        "worse", F.col("closest.better").alias("better"), (-F.col("closest.distance")).alias("similarity")
    )
