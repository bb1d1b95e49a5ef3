"""Several sources by weight, orders that stay local, the sequence-length warm-up, and the chain of digests."""

import contextlib
import shutil
import time
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shards import make_shards

from tokenizer.shards import TokenStream
from training import results, steps
from training.batches import TrainingBatches
from training.config import Data
from training.order import RUNS, Mixture, TrainingOrder, quotas
from training.read_ahead import ReadAhead
from training.sample_chain import Chain, sample_digest

LENGTH = 32


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    return [make_shards(place / "one", train=120), make_shards(place / "two", train=60, seed=7)]


def batches(folders, **options):
    streams = [TokenStream(folder) for folder in folders]
    return TrainingBatches(streams, sequence_length=LENGTH, sequences=12, seed=0, **options)


def whole_of(folder):
    stream = TokenStream(folder)
    tokens = np.empty(len(stream), stream.dtype)
    stream.read(0, tokens)
    return tokens


@given(windows=st.integers(1, 700), group=st.integers(1, 800), epoch=st.integers(0, 3))
@settings(deadline=None)
def test_an_order_in_groups_visits_every_window_once_and_stays_local(windows, group, epoch):
    order = TrainingOrder(windows, "run", group)
    numbers = np.arange(epoch * windows, (epoch + 1) * windows, dtype=np.uint64)
    found = order(numbers)
    assert sorted(found.tolist()) == list(range(windows))
    np.testing.assert_array_equal(found[::-1], order(numbers[::-1].copy()))
    if order.run:
        for first in range(0, windows, order.run * RUNS):
            runs = set((found[first : first + order.run * RUNS] // order.run).tolist())
            assert len(runs) <= RUNS


@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=5), total=st.integers(2000, 5000))
def test_quotas_share_out_everything_within_one_of_the_weights(weights, total):
    found = quotas(weights, total)
    assert sum(found) == total
    assert all(abs(got - weight / sum(weights) * total) < 1 for got, weight in zip(found, weights, strict=True))


def test_bytes_a_token_are_those_of_what_is_read(folders, monkeypatch):
    sources = batches(folders, data=Data(weights=[3.0, 1.0])).sources
    for source, text_bytes in zip(sources.all, (300, 1200), strict=True):
        shard = replace(source.stream.shards[0], tokens=100, text_bytes=text_bytes)
        monkeypatch.setattr(source.stream, "shards", [shard])
        monkeypatch.setattr(source.stream, "_ends", [100])
    assert sources.bytes_per_token == pytest.approx(0.75 * 3 + 0.25 * 12)


def test_a_weight_too_small_to_be_met_is_refused():
    with pytest.raises(ValueError, match=r"1e-09 .* less than one sequence in 4096"):
        quotas([1.0, 1e-9], 4096)


@pytest.mark.parametrize("weight", [5e-324, 1e-300, 1.0, 1e308, 1.7e308])
def test_weights_of_any_size_are_proportions(weight):
    assert quotas([weight, weight, weight], 4096) == quotas([1.0] * 3, 4096)
    with pytest.raises(ValueError, match=r"less than one sequence in 4096"):
        quotas([1.7e308, 1.7e308, 1.0], 4096)


def test_a_folder_that_rounding_gives_far_more_or_less_is_told(caplog):
    names = [SimpleNamespace(name=name) for name in ("code", "prose", "notes")]
    told = []
    for weights in ([4000.0, 87.0, 9.49], [8099.0, 1.0], [4094.33, 1.33, 0.34]):
        caplog.clear()
        results._tell_rounding(SimpleNamespace(all=names[: len(weights)], mixture=Mixture(weights, "run")))
        told.append(caplog.messages)
    line = "sequences are mixed in parts of 4,096: {} times as often as its weight asks"
    assert told == [[], [line.format("prose 1.98")], [line.format("prose 0.75 times, notes 2.94")]]


@given(weights=st.lists(st.floats(0.01, 1000), min_size=2, max_size=6))
def test_no_folder_is_read_more_often_than_the_number_of_folders_allows(weights):
    with contextlib.suppress(ValueError):
        mixture = Mixture(weights, "run")
        for share, asked in zip(mixture.shares, mixture.asked, strict=True):
            assert abs(share - asked) < 1 / Mixture.BLOCK
            assert 1 / 2 < share / asked < len(weights) + 1e-6


@given(
    weights=st.lists(st.floats(0.05, 1), min_size=1, max_size=4), blocks=st.integers(1, 3), cut=st.integers(0, 4096)
)
@settings(deadline=None, max_examples=25)
def test_a_mixture_hands_out_each_sources_sequences_once(weights, blocks, cut):
    mixture = Mixture(weights, "run")
    numbers = np.arange(blocks * Mixture.BLOCK, dtype=np.uint64)
    sources, own = mixture(numbers)
    for number, quota in enumerate(mixture.quotas):
        assert own[sources == number].tolist() == list(range(blocks * quota))
    backwards = mixture(numbers[::-7].copy())
    np.testing.assert_array_equal(backwards, [sources[::-7], own[::-7]])
    consumed = (blocks - 1) * Mixture.BLOCK + cut
    counts = Counter(sources[:consumed].tolist())
    assert mixture.taken(consumed) == [counts[number] for number in range(len(weights))]
    far = np.array([10**12], np.uint64)
    assert 0 <= int(mixture(far)[0][0]) < len(weights)


def test_a_mixture_reads_the_windows_of_its_folders_by_weight(folders):
    mixed, contents = batches(folders, data=Data(weights=[1.0, 3.0])), [whole_of(folder) for folder in folders]
    samples = np.concatenate([mixed.samples(consumed) for consumed in range(0, 1200, 12)])
    parts = [part.on("cpu") for first in range(0, 1200, 12) for part in mixed.share(first, 12, 0, 1)]
    rows = np.concatenate([part["input_ids"] for part in parts])
    for row, (source, window) in zip(rows, samples.tolist(), strict=True):
        np.testing.assert_array_equal(row, contents[source][window * LENGTH : (window + 1) * LENGTH])
    assert (samples[:, 0] == 1).mean() == pytest.approx(0.75, abs=0.06)
    epochs = mixed.epochs(1200)
    for number, (name, epoch) in enumerate(epochs.items()):
        own = samples[samples[:, 0] == number, 1]
        assert epoch == pytest.approx(len(own) / mixed.sources.all[number].windows, abs=1e-6), name
        counts = np.bincount(own.astype(np.int64), minlength=mixed.sources.all[number].windows)
        assert set(counts.tolist()) <= {int(epoch), int(epoch) + 1}


def test_folders_of_other_tokenizers_and_wrong_weights_are_refused(folders, tmp_path):
    with pytest.raises(ValueError, match=r"data.weights \[1.0\] are 1 for 2 folders"):
        batches(folders, data=Data(weights=[1.0]))
    with pytest.raises(ValueError, match="must all be above 0"):
        Data(weights=[0.5, 0.0])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_sequence_length_warmup_reads_the_same_tokens_in_shorter_rows(folders, world_size):
    warm = batches(folders[:1], data=Data(warmup_length=8, warmup_steps=6))
    plain = batches(folders[:1])
    lengths = []
    for step in range(8):
        shares = [part.on("cpu") for rank in range(world_size) for part in warm.share(step * 12, 3, rank, world_size)]
        whole = next(plain.share(step * 12, 12, 0, 1)).on("cpu")
        lengths.append(shares[0]["input_ids"].shape[1])
        for name in ("input_ids", "labels"):
            np.testing.assert_array_equal(
                np.concatenate([part[name].reshape(-1) for part in shares]), whole[name].flatten()
            )
    assert lengths == [8, 8, 8, 16, 16, 16, 32, 32]


def test_folders_of_the_same_shards_are_refused(folders, tmp_path):
    copy = shutil.copytree(folders[0], tmp_path / "copy")
    with pytest.raises(ValueError, match=rf"^{copy} and {folders[0]} hold the same shards, which would be read in"):
        batches([*folders, copy])


def test_steps_are_timed_at_the_full_sequence_length(folders, monkeypatch):
    warm, lengths = ReadAhead(batches(folders[:1], data=Data(warmup_length=8, warmup_steps=6))), []
    alone = SimpleNamespace(total=list, from_first=bool, gathered=lambda value: [value])
    monkeypatch.setattr(steps, "take_step", lambda _, read, __, first, **___: lengths.append(read.length_at(first)))
    assert steps.seconds_per_step(None, warm, alone, 0.0, SimpleNamespace(came=False)) >= 0
    assert set(lengths) == {LENGTH}


def test_a_warmup_length_that_halving_does_not_reach_is_refused(folders):
    with pytest.raises(ValueError, match=r"warmup_length 9 is not .* halved some times; 8 is"):
        batches(folders, data=Data(warmup_length=9, warmup_steps=6))


def test_the_chain_of_digests_is_that_of_the_samples_and_moves_with_each(folders):
    one, other = batches(folders), batches(folders, data=Data(shuffle_tokens=640))
    chain, mine = Chain(), b""
    for consumed in range(0, 120, 12):
        chain = chain.after(one.samples(consumed))
        numbers = np.stack(one.sources(np.arange(consumed, consumed + 12, dtype=np.uint64)), axis=1)
        mine = sample_digest(mine, numbers)
    assert chain.digest == mine.hex()
    chain.refuse_other(lambda step: one.samples((step - 1) * 12))
    with pytest.raises(ValueError, match="samples of steps 1 to 10"):
        chain.refuse_other(lambda step: other.samples((step - 1) * 12))


def test_resuming_far_into_a_run_takes_no_longer_than_at_its_begin(folders):
    """What a millisecond buys depends on the machine, and is the benchmark's to hold."""
    taken = {0: [], 10**12: []}
    for attempt in range(20):
        for first, times in taken.items():
            found = batches(folders)
            begin = time.perf_counter()
            found.samples(first + attempt)
            times.append(time.perf_counter() - begin)
    near, far = map(min, taken.values())
    assert far < 3 * near
