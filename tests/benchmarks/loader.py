"""The loader of training: micro-batches as a step gets them, made by one thread from shards in the page cache.

Run as a program this measures one thing in a process of its own and prints a number; `figures` runs them all.
"""

import json
import sys
import time
from pathlib import Path

from processes import printed_figure
from reading import data_set

SEQUENCES, SEQUENCES_AT_ONCE, STEPS, ROUNDS = 192, 12, 5, 60
FAR = 10**12
NAMES = ("causal_1024", "causal_2048", "documents_1024", "resume_milliseconds")


def figures() -> dict[str, float]:
    """Every figure by the name of its function, each measured by a process of its own."""
    found, folder = {}, data_set()
    for name in NAMES:
        found[name] = printed_figure(__file__, name, folder)
    return found


def causal_1024(folder: Path) -> float:
    """Million tokens a second."""
    return _speed(folder, 1024)


def causal_2048(folder: Path) -> float:
    """Million tokens a second."""
    return _speed(folder, 2048)


def documents_1024(folder: Path) -> float:
    """Million tokens a second, with positions that begin anew at every document."""
    from training.objectives import Causal

    return _speed(folder, 1024, Causal(0))


def resume_milliseconds(folder: Path) -> float:
    """From an opened data set to the samples of the step at sequence FAR; the best of some."""
    taken = []
    for attempt in range(20):
        batches = _batches(folder, 1024)
        begin = time.perf_counter()
        batches.samples(FAR + attempt)
        taken.append(time.perf_counter() - begin)
    return min(taken) * 1000


def _batches(folder: Path, length: int, predict=None):
    from training.batches import TrainingBatches
    from training.sources import CheckedStream

    return TrainingBatches(CheckedStream(folder), sequence_length=length, sequences=SEQUENCES, seed=0, predict=predict)


def _speed(folder: Path, length: int, predict=None) -> float:
    """Million tokens a second, the best round, each of other steps; all shards are hashed and mapped before."""
    import torch

    torch.set_num_threads(1)
    batches, speeds = _batches(folder, length, predict), []
    for number in range(ROUNDS):
        begin = time.perf_counter()
        for step in range(number * STEPS, (number + 1) * STEPS):
            for _ in batches.share(step * SEQUENCES, SEQUENCES_AT_ONCE, 0, 1):
                pass
        speeds.append(STEPS * SEQUENCES * length / (time.perf_counter() - begin) / 1e6)
    return max(speeds)


if __name__ == "__main__":
    print(json.dumps(float(globals()[sys.argv[1]](Path(sys.argv[2])))))
