"""The thread that makes batches ahead: the same batches, its errors in the loop, no thread left; damaged shards."""

import contextlib
import threading
import time

import pytest
from small_shards import make_shards

from training import read_ahead
from training.batches import TrainingBatches
from training.read_ahead import ReadAhead
from training.sources import CheckedStream


@pytest.fixture
def folder(tmp_path):
    return make_shards(tmp_path / "shards", train=60, per_shard=20)


def batches(folder, **options):
    return TrainingBatches(CheckedStream(folder), sequence_length=32, sequences=12, seed=0, **options)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "read-ahead"]


def same(one, other):
    one, other = ([batch.on("cpu") for batch in batches] for batches in (one, other))
    return len(one) == len(other) and all(
        set(a) == set(b) and all(a[name].equal(b[name]) for name in a) for a, b in zip(one, other, strict=True)
    )


def test_all_micro_batches_of_a_step_are_made_ahead_of_it(folder):
    """A step takes its own at once, so that fewer would make it wait."""
    with contextlib.closing(ReadAhead(batches(folder), ahead=1)) as read:
        list(read.share(0, 1, 0, 1))
        waiting = read._thread._queue
        deadline = time.monotonic() + 30
        while waiting.qsize() < read.sequences:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert read.sequences > 1


@pytest.mark.parametrize("ahead", [1, 5])
def test_batches_are_the_same_with_and_without_in_any_order_of_steps(folder, ahead):
    plain, read = batches(folder), ReadAhead(batches(folder), ahead)
    for consumed, cut in [
        (0, (4, 0, 1)),
        (12, (4, 0, 1)),
        (24, (3, 1, 2)),
        (36, (3, 1, 2)),
        (0, (4, 0, 1)),
        (960, (6, 1, 2)),
    ]:
        assert same(list(read.share(consumed, *cut)), list(plain.share(consumed, *cut)))
        assert len(threads()) == 1
    partly = read.share(0, 2, 0, 1)
    next(partly)
    assert same(list(read.share(24, 2, 0, 1)), list(plain.share(24, 2, 0, 1)))
    read.close()
    assert not threads()
    assert read.windows == plain.windows


def test_waiting_is_counted_and_work_goes_on_meanwhile(folder):
    def slowly(rows, keys):
        time.sleep(0.02)
        return {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}

    read = ReadAhead(batches(folder, predict=slowly), ahead=4)
    list(read.share(0, 3, 0, 1))
    first = read.take_wait()
    assert first >= 0.06
    time.sleep(0.3)  # a step: four batches are made
    list(read.share(12, 3, 0, 1))
    assert read.take_wait() < 0.02
    read.close()


def test_an_error_of_the_thread_is_raised_by_the_loop_and_ends_the_thread(folder):
    def faulty(rows, keys):
        if any(key == "0:30:0" for key in keys):
            raise RuntimeError("sequence 30")
        return {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}

    read = ReadAhead(batches(folder, predict=faulty))
    for consumed in (0, 12):
        assert len(list(read.share(consumed, 4, 0, 1))) == 3
    with pytest.raises(RuntimeError, match="sequence 30"):
        list(read.share(24, 4, 0, 1))
    assert not threads()


def damaged(folder, number):
    path = folder / f"train-{number}.arrow"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_shard_is_named_before_any_of_its_tokens_is_used(folder):
    clean = [batch.on("cpu")["input_ids"] for step in range(3) for batch in batches(folder).share(12 * step, 12, 0, 1)]
    damaged(folder, 1)
    read, seen = ReadAhead(batches(folder)), []

    def three_steps():
        for step in range(3):
            seen.extend(batch.on("cpu")["input_ids"] for batch in read.share(12 * step, 12, 0, 1))

    with pytest.raises(ValueError, match=r"train-1.arrow is damaged: its checksum differs"):
        three_steps()
    assert all(one.equal(other) for one, other in zip(seen, clean[: len(seen)], strict=True))


def test_a_long_wait_for_data_is_told(folder, monkeypatch, caplog):
    caplog.set_level("INFO", "train")
    monkeypatch.setattr(read_ahead, "TELL_SECONDS", 0.05)

    def slowly(rows, keys):
        time.sleep(0.2)
        return {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}

    with contextlib.closing(ReadAhead(batches(folder, predict=slowly))) as read:
        list(read.share(0, 6, 1, 2))
        assert not caplog.messages
        list(read.share(0, 6, 0, 2))
    assert caplog.messages[0] == "waiting for data: 3 of 3 shards were hashed and opened"


def test_what_was_read_is_compared_with_what_was_asked_for(folder, monkeypatch):
    """So that the digest of a run's samples is of what it read."""
    read = ReadAhead(batches(folder))
    made = read.batches.share
    monkeypatch.setattr(read.batches, "share", lambda consumed, *cut: made(consumed + 12, *cut))
    with (
        contextlib.closing(read),
        pytest.raises(RuntimeError, match="sequences 0 to 3 were asked for, others were read"),
    ):
        list(read.share(0, 4, 0, 1))
