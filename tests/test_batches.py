import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shards import make_shards

from tokenizer.shards import TokenStream
from training.batches import EvaluationBatches, TrainingBatches
from training.micro_batch import MicroBatch, room_for
from training.order import FEW_WINDOWS, Permutation, TrainingOrder, count_windows

LENGTH = 32


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="module")
def tokens(shards):
    """The training split as one array: the oracle of what windows hold."""
    stream = TokenStream(shards)
    whole = np.empty(len(stream), stream.dtype)
    stream.read(0, whole)
    return whole.astype(np.int64)


def training(shards, sequences=12, seed=0, length=LENGTH, **options):
    return TrainingBatches(TokenStream(shards), sequence_length=length, sequences=sequences, seed=seed, **options)


def rows_of(batch):
    """The rows (B, T + 1) that a causal micro-batch was made of."""
    there = batch.on("cpu")
    inputs, labels = there["input_ids"].numpy(), there["labels"].numpy()
    np.testing.assert_array_equal(inputs[:, 1:], labels[:, :-1])
    return np.concatenate([inputs, labels[:, -1:]], axis=1)


def first_rows(batches, consumed=0):
    return rows_of(next(batches.share(consumed, batches.sequences, 0, 1)))


@given(size=st.integers(1, 3000), key=st.text(max_size=8))
@settings(deadline=None, max_examples=50)
def test_permutation_visits_every_entry_once(size, key):
    entries = Permutation(size, key)(np.arange(size, dtype=np.uint64))
    assert sorted(entries.tolist()) == list(range(size))


@given(size=st.integers(1, 1 << 62), data=st.data())
@settings(deadline=None, max_examples=50)
def test_permutation_of_a_large_domain_stays_inside_and_repeats_nothing(size, data):
    positions = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=50, unique=True))
    entries = Permutation(size, "key")(np.array(positions, np.uint64))
    assert len(set(entries.tolist())) == len(positions)
    assert int(entries.max()) < size


@given(size=st.integers(1, 500), positions=st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
@settings(deadline=None)
def test_order_does_not_depend_on_how_it_is_asked(size, positions):
    order = TrainingOrder(size, "run")
    together = order(np.array(positions, np.uint64)).tolist()
    assert together == [int(order(np.array([position], np.uint64))[0]) for position in positions]


def test_every_epoch_has_every_window_once_in_another_order():
    order = TrainingOrder(1009, "run")
    epochs = order(np.arange(3 * 1009, dtype=np.uint64)).reshape(3, 1009)
    assert all(sorted(epoch) == list(range(1009)) for epoch in epochs.tolist())
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert (epochs[one] == epochs[other]).mean() < 0.02
        assert abs(np.corrcoef(epochs[one].astype(float), epochs[other].astype(float))[0, 1]) < 0.15
    assert abs(np.corrcoef(epochs[0][:-1].astype(float), epochs[0][1:].astype(float))[0, 1]) < 0.15


def surprise(counts, expected):
    """Pearson's chi-square of counts that should all be as expected, in standard deviations from its mean."""
    free = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - free) / (2 * free) ** 0.5


def epochs_of(windows, count):
    order, numbers = TrainingOrder(windows, "run"), np.arange(windows, dtype=np.uint64)
    return np.stack([order(numbers + np.uint64(epoch * windows)) for epoch in range(count)]).astype(np.int64)


@pytest.mark.parametrize("windows", [7, FEW_WINDOWS - 1, 101])
def test_windows_come_at_all_places_and_after_all_others_equally_often(windows):
    """Two, three, four or five rounds instead of ROUNDS leave neighbours together, 9,000 to 7 deviations too often."""
    epochs = epochs_of(windows, 2000)
    places = epochs + windows * np.arange(windows)
    assert abs(surprise(np.bincount(places.ravel()), len(epochs) / windows)) < 4
    distances = (epochs[:, 1:] - epochs[:, :-1]) % windows
    assert abs(surprise(np.bincount(distances.ravel())[1:], len(epochs))) < 4


@pytest.mark.parametrize("windows", [2, 3, 4])
def test_few_windows_come_in_every_order_equally_often(windows):
    orders = math.factorial(windows)
    _, counts = np.unique(epochs_of(windows, 100 * orders), axis=0, return_counts=True)
    assert len(counts) == orders
    assert abs(surprise(counts, 100)) < 4


@given(consumed=st.integers(0, 10_000), world_size=st.sampled_from([1, 2, 3, 4, 6, 12]), data=st.data())
@settings(deadline=None)
def test_global_batch_is_the_same_however_it_is_cut(shards, consumed, world_size, data):
    share = 12 // world_size
    size = data.draw(st.sampled_from([size for size in range(1, share + 1) if share % size == 0]))
    batches = training(shards)
    whole = first_rows(batches, consumed)
    parts = [rows_of(part) for rank in range(world_size) for part in batches.share(consumed, size, rank, world_size)]
    assert {part.shape for part in parts} == {(size, LENGTH + 1)}
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_rows_go_to_the_device_from_where_they_were_read_to(dtype):
    top = np.iinfo(dtype).max
    room = room_for(2, 5, dtype)
    rows = room.numpy()
    rows[:] = top - np.arange(10).reshape(2, 5)
    batch = MicroBatch.of({"rows": rows}, room=room)
    assert batch.tensors["rows"] is room
    assert batch.label_count == 8
    there = batch.on("cpu")
    np.testing.assert_array_equal(there["input_ids"], rows[:, :-1].astype(np.int64))
    np.testing.assert_array_equal(there["labels"], rows[:, 1:].astype(np.int64))


def test_tokens_are_copied_once_from_the_map(shards, monkeypatch):
    batches, rooms = training(shards), []
    monkeypatch.setattr("training.batches.room_for", lambda *size: rooms.append(room_for(*size)) or rooms[-1])
    (batch,) = batches.share(0, 12, 0, 1)
    assert batch.tensors["rows"] is rooms[0]
    assert str(batch.tensors["rows"].dtype) == "torch.uint16"


def test_an_epoch_reads_every_window_of_the_shards_once(shards, tokens):
    windows = count_windows(len(tokens), LENGTH)
    batches = training(shards, sequences=windows)
    read = first_rows(batches)
    expected = np.stack([tokens[i * LENGTH : i * LENGTH + LENGTH + 1] for i in range(windows)])
    assert not np.array_equal(read, expected)
    np.testing.assert_array_equal(read[np.lexsort(read.T)], expected[np.lexsort(expected.T)])


def test_order_is_keyed_by_seed_data_and_length(shards, tmp_path):
    first = first_rows(training(shards))
    np.testing.assert_array_equal(first, first_rows(training(shards)))
    assert not np.array_equal(first, first_rows(training(shards, seed=1)))
    other = make_shards(tmp_path / "other", seed=5)
    numbers = np.arange(20, dtype=np.uint64)
    several = (training(shards), training(other), training(shards, length=LENGTH + 1))
    identities = {batches.sources.all[0].order.identity for batches in several}
    assert len({tuple(TrainingOrder(10**6, identity)(numbers).tolist()) for identity in identities}) == 3


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 4])
def test_evaluation_reads_each_window_once_and_equally_often_on_all_ranks(shards, world_size, size):
    stream = TokenStream(shards, "validation")
    batches = EvaluationBatches(stream, sequence_length=LENGTH, max_tokens=10 * LENGTH)
    ranks = [[batch.on("cpu") for batch in batches.share(size, rank, world_size)] for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    fills = [(batch["labels"] == -100).all(dim=1).numpy() for rank in ranks for batch in rank]
    rows = [np.concatenate([batch["input_ids"], batch["labels"][:, -1:]], 1) for rank in ranks for batch in rank]
    read = sorted(tuple(row) for some, fill in zip(rows, fills, strict=True) for row in some[~fill].tolist())
    whole = np.empty(10 * LENGTH + 1, stream.dtype)
    stream.read(0, whole)
    assert read == sorted(tuple(whole[i * LENGTH : i * LENGTH + LENGTH + 1].tolist()) for i in range(10))


def test_evaluation_of_a_short_split_reads_what_there_is(shards):
    stream = TokenStream(shards, "validation")
    batches = EvaluationBatches(stream, sequence_length=10**6, max_tokens=1)
    (batch,) = batches.share(1, 0, 1)
    assert rows_of(batch).shape == (1, len(stream))


def test_sequence_longer_than_the_data_is_refused(shards):
    with pytest.raises(ValueError, match=r"sequence_length 1000000 needs 1000001 tokens"):
        training(shards, length=10**6)
