"""Leaders against a walk over the true edges, components against networkx, on one worker and in rounds."""

import hashlib
import math
import random
from collections import defaultdict
from itertools import combinations, pairwise

import networkx
import numpy as np
import pytest
from oracles import greedy

from spark_jobs.near_duplicates.components import components_of
from spark_jobs.near_duplicates.edges import (
    EDGE_ROWS,
    NONE,
    OPEN,
    SHINGLES,
    SKETCH,
    UNITS,
    blobs_of,
    edge_blobs,
    rows_of,
)
from spark_jobs.near_duplicates.keep_order import KEY_BYTES, RANK_BYTES, SPOT_BYTES
from spark_jobs.near_duplicates.leaders import WALKED_EDGES, Graph, removals_of
from spark_jobs.near_duplicates.records import EDGE, KIND_EDGE
from spark_jobs.near_duplicates.stored import stored

# One task for all; rounds to the end; rounds until what is left fits one task.
WALKS = [WALKED_EDGES, 0, 200]


def key_of(*numbers):
    """A key that sorts as the numbers do; its first byte is that of a fresh file, its last are a spot."""
    rank = b"".join(number.to_bytes(4, "big") for number in numbers)
    return b"\x80" + rank.ljust(RANK_BYTES - 1, b"\0") + hashlib.blake2b(rank, digest_size=SPOT_BYTES).digest()


def random_edges(count, seed, open_share):
    """(better, worse): (similarity, proof, truth) over `count` small graphs, from sparse to complete, and a long chain
    whose rounds are many. An open edge holds or does not."""
    draw, edges = random.Random(seed), {}
    for graph in range(count):
        keys = [key_of(graph, place) for place in range(draw.randrange(2, 9))]
        dense = draw.random()
        for pair in combinations(keys, 2):
            if draw.random() < dense:
                is_open = draw.random() < open_share
                proof = OPEN if is_open else SKETCH
                edges[pair] = (draw.choice([0.7, 0.75, 0.8, 1.0]), proof, not is_open or draw.random() < 0.5)
    for pair in pairwise(key_of(count, place) for place in range(9)):
        edges[pair] = (0.7, SKETCH, True)
    return edges


def records_of(edges, seed=0):
    """The edges as records, in any order."""
    pairs = random.Random(seed).sample(sorted(edges), len(edges))
    records = np.zeros(len(pairs), EDGE)
    for side, name in enumerate(("better", "worse")):
        records[name] = np.frombuffer(b"".join(pair[side] for pair in pairs), np.uint8).reshape(-1, KEY_BYTES)
    records["similarity"] = [edges[pair][0] for pair in pairs]
    records["proof"] = [edges[pair][1] for pair in pairs]
    records["band"] = np.arange(len(pairs)) % 42
    records["places"]["shingles"] = np.arange(2 * len(pairs)).reshape(-1, 2)
    return records


def resolved_by(resolve, spark, edges, harness, walked):
    """What it makes of the edges, stored as a few blobs: rows, and how many it says there are."""
    parts = [blob for part in np.array_split(records_of(edges), 5) for blob in edge_blobs(part)]
    given = stored(spark.range(1, numPartitions=1), lambda _: iter(parts), harness.scratch("given"))
    found = resolve(spark, given, harness.verify, harness, walked)
    rows = rows_of(found.blobs(spark, KIND_EDGE)).collect()
    assert found.count() == len(rows)
    return rows


class Harness:
    """What the steps are given: a name is used once, and open edges are looked up, with a note."""

    def __init__(self, spark, edges, folder):
        self._spark, self._edges, self._folder, self._names = spark, edges, folder, set()
        self.asked = []

    def staged(self, rows, name):
        assert name not in self._names, name
        self._names.add(name)
        return rows.localCheckpoint()

    def scratch(self, name):
        assert name not in self._names, name
        self._names.add(name)
        return str(self._folder / name)

    def verify(self, given):
        wanted = given.blobs(self._spark, KIND_EDGE)
        assert {row.bucket for row in wanted.select("bucket").collect()} <= set(range(UNITS))
        rows = [row.asDict() for row in rows_of(wanted).collect()]
        self.asked += [(bytes(row["better"]), bytes(row["worse"])) for row in rows]
        found = []
        for row in rows:
            similarity, proof, truth = self._edges[bytes(row["better"]), bytes(row["worse"])]
            assert row["proof"] == proof == OPEN
            if truth:
                found.append({**row, "similarity": similarity - 0.001, "proof": SHINGLES})
        names = EDGE_ROWS.replace(",", "").split()[::2]
        rows = [tuple(row[name] for name in names) for row in found]
        return blobs_of(self._spark.createDataFrame(rows, EDGE_ROWS), self.scratch("verified"))


def neighbours_of(pairs):
    neighbours = defaultdict(set)
    for better, worse in pairs:
        neighbours[better].add(worse)
        neighbours[worse].add(better)
    return neighbours


def clear_states(edges):
    """What a walk decides without the open edges: kept, removed, or None where it depends on them."""
    better_ones, states = defaultdict(list), {}
    for (better, worse), (_, proof, _) in edges.items():
        better_ones[worse].append((better, proof))
    for file in sorted({file for pair in edges for file in pair}):
        found = [(states[better], proof) for better, proof in better_ones[file]]
        if ("kept", SKETCH) in found:
            states[file] = "removed"
        else:
            states[file] = "kept" if all(state == "removed" for state, _ in found) else None
    return states


@pytest.fixture(scope="module", params=[(0.4, walked) for walked in WALKS] + [(0.0, WALKED_EDGES), (0.0, 0)], ids=str)
def resolved(spark, request, tmp_path_factory):
    """Random edges, of which a share is open, the removals that they lead to, what was verified, and `walked`."""
    open_share, walked = request.param
    edges = random_edges(300, 11, open_share)
    harness = Harness(spark, edges, tmp_path_factory.mktemp("resolved"))
    removed = resolved_by(removals_of, spark, edges, harness, walked)
    return edges, removed, harness.asked, walked


def test_leaders_are_those_of_a_walk_over_the_true_edges(resolved):
    edges, found, asked, _ = resolved
    true = {pair: edge for pair, edge in edges.items() if edge[2]}
    neighbours = neighbours_of(true)
    kept = set(greedy(sorted(neighbours), lambda one, other: other in neighbours[one]))
    removed = {bytes(row.worse): row for row in found}
    assert len(found) == len(removed) > 300
    assert set(removed) == set(neighbours) - kept
    known = {pair: similarity for pair, (similarity, proof, _) in true.items() if proof != OPEN}
    known |= {pair: true[pair][0] - 0.001 for pair in asked if pair in true}
    by_worse = defaultdict(list)
    for better, worse in known:
        by_worse[worse].append(better)
    for worse, row in removed.items():
        better = min((one for one in by_worse[worse] if one in kept), key=lambda one: (-known[one, worse], one))
        assert (bytes(row.better), row.similarity) == (better, known[better, worse])
        assert row.proof == (SHINGLES if (better, worse) in asked else SKETCH)
        assert row.band is not None
        assert len(row.places) == EDGE["places"].itemsize


def test_only_edges_that_decide_something_are_verified(resolved):
    edges, _, asked, walked = resolved
    states = clear_states(edges)
    unclear = {pair for pair, (_, proof, _) in edges.items() if proof == OPEN}
    deciding = {(one, other) for one, other in unclear if states[one] != "removed" and states[other] is None}
    assert len(asked) == len(set(asked))
    assert not [pair for pair in asked if "removed" in (states[pair[0]], states[pair[1]])]
    assert deciding <= set(asked) <= unclear
    assert len(deciding) < 0.9 * len(unclear) or not unclear
    if walked == WALKED_EDGES:
        assert set(asked) == deciding


@pytest.mark.parametrize("walked", [WALKED_EDGES, 0])
def test_no_edges_remove_nothing(spark, tmp_path, walked):
    for resolve in (removals_of, components_of):
        harness = Harness(spark, {}, tmp_path / resolve.__name__)
        assert resolved_by(resolve, spark, {}, harness, walked) == []
        assert harness.asked == []


@pytest.mark.parametrize("walked", [WALKED_EDGES, 0])
def test_a_complete_graph_of_open_edges_is_verified_and_walked(spark, tmp_path, walked):
    """Nothing is clear, so that no round makes progress before the proofs."""
    draw = random.Random(1)
    edges = {pair: (0.9, OPEN, draw.random() < 0.2) for pair in combinations([key_of(1, n) for n in range(25)], 2)}
    neighbours = neighbours_of(pair for pair, edge in edges.items() if edge[2])
    kept = set(greedy(sorted(neighbours), lambda one, other: other in neighbours[one]))
    harness = Harness(spark, edges, tmp_path)
    found = resolved_by(removals_of, spark, edges, harness, walked)
    assert {bytes(row.worse) for row in found} == set(neighbours) - kept
    assert len(harness.asked) == len(edges)


@pytest.mark.parametrize("seed", range(10))
def test_components_of_a_graph_are_those_of_networkx(seed):
    draw = random.Random(seed)
    keys = [key_of(draw.randrange(1 << 32), number) for number in range(200)]
    edges = {tuple(sorted(draw.sample(keys, 2))): (0.8, SKETCH, True) for _ in range(draw.randrange(1, 300))}
    graph = Graph(records_of(edges, seed))
    files, best = ([key.tobytes() for key in graph.keys(of)] for of in (np.arange(graph.files), graph.components()))
    assert files == sorted({file for pair in edges for file in pair})
    components = networkx.connected_components(networkx.Graph(edges.keys()))
    expected = {file: min(component) for component in components for file in component}
    assert dict(zip(files, best, strict=True)) == expected


@pytest.mark.parametrize("walked", [WALKED_EDGES, 0])
def test_components_are_those_of_networkx(spark, tmp_path, walked):
    edges = random_edges(200, 13, 0.3)
    true = {pair: edge for pair, edge in edges.items() if edge[2]}
    harness = Harness(spark, edges, tmp_path)
    found = resolved_by(components_of, spark, edges, harness, walked)
    expected = {}
    for component in networkx.connected_components(networkx.Graph(true.keys())):
        best, *others = sorted(component)
        expected |= dict.fromkeys(others, best)
    assert len(found) == len(expected)
    assert {bytes(row.worse): bytes(row.better) for row in found} == expected
    assert sorted(harness.asked) == sorted(pair for pair, (_, proof, _) in edges.items() if proof == OPEN)
    adjacent = 0
    for row in found:
        edge = true.get((bytes(row.better), bytes(row.worse)))
        adjacent += edge is not None
        if edge is None:
            assert (math.isnan(row.similarity), row.band, row.proof) == (True, NONE, NONE)
        else:
            similarity, proof, _ = edge
            assert row.similarity == (similarity - 0.001 if proof == OPEN else similarity)
            assert row.proof == (SHINGLES if proof == OPEN else SKETCH)
    assert 0 < adjacent < len(found)
