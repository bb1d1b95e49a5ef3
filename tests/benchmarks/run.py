"""make bench: near-duplicate removal against the exact truth, against other tools, and as the corpus grows; the token
layer beside tokenizers and datatrove, the reading of shards, and the loader of training.

Prints one table and exits with 1 if a bar is missed. Corpora and the environments of other tools stay in .bench, which
takes about 5 GB; `--only accuracy` and the like run a part.
"""

import argparse
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import corpus
import loader as training_loader
import numpy as np
import pyarrow as pa
import token_layer
import training_speed

sys.path.append(str(Path(__file__).parents[1]))  # for tests/oracles.py

from exact_join import Truth, check, similar_pairs
from judge import Verdict, judge
from near_duplicates import decisions, job_on, run_job, small_heap, start_up_seconds, working_seconds
from peers import PEERS, QUOTED, Peer, run_peer
from processes import OFTEN_SECONDS
from reading import MANY, figures
from synthetic import synthetic_corpus
from table import Line, at_least, at_most, rendered

THRESHOLDS = (0.7, 0.85)
CHECKED_FILES = 1000
RESIDUAL_BAR, GROWTH_BAR, SHUFFLE_BAR, MEMORY_BAR_BYTES = 0.002, 1.1, 1.2, 2e9
SEQUENTIAL_BAR, ORDER_BAR, OPEN_BAR_SECONDS, SHARD_BAR_BYTES = 200, 20, 1, 2048
SMALL_HEAP = "512m"
LOADER_BAR, RESUME_BAR_MILLISECONDS = 200, 1


def accuracy() -> Iterator[Line]:
    """Every removal has a kept twin, and next to no duplicate is left."""
    folder, (truth, checked) = corpus.real_corpora()["accuracy"], _truth()
    files = f"{len(truth.content):,} files, {len(truth.left):,} pairs"
    yield Line("accuracy", "exact truth", files, "", None)
    yield Line("accuracy", f"brute force over {CHECKED_FILES:,} files agrees", f"{checked:,} pairs", "all", True)
    for threshold in THRESHOLDS:
        job = job_on(folder, threshold)
        verdict = judge(truth.at(threshold), *decisions(job, folder))
        what = f"removals at {threshold} whose named twin is not kept or not similar"
        yield at_most("accuracy", what, verdict.unjustified, 0, "{:,.0f}", f" of {verdict.removed:,}")
        what = f"kept at {threshold} beside a similar kept file"
        aside = f" ({verdict.residual:,} of {verdict.kept:,})"
        yield at_most("accuracy", what, verdict.residual_share, RESIDUAL_BAR, "{:.2%}", aside)


def peers() -> Iterator[Line]:
    """What the exact truth says of other tools; nothing is asked of them."""
    folder, (truth, _) = corpus.real_corpora()["accuracy"], _truth()
    for peer in (peer for peer in PEERS if peer.judged):
        if ran := run_peer(peer, folder):
            seconds, kept = ran
            removed = np.setdiff1d(np.arange(len(truth.content)), kept)
            yield Line("peers", peer.name, _told(judge(truth, kept, removed), _megabytes(folder) / seconds))
    job = job_on(folder)
    verdict = judge(truth, *decisions(job, folder)[:2])
    yield Line("peers", "dedup.py", _told(verdict, _megabytes(folder) / working_seconds(job)))


def speed() -> Iterator[Line]:
    """Megabytes of text a second, and how many times those of other tools.

    Each runs twice, in turn, and its faster run counts: others may use this machine too.
    """
    folders = corpus.real_corpora()
    large, megabytes = folders["large"], _megabytes(folders["large"])
    jobs, theirs = [], {peer.name: [] for peer in PEERS}
    for run in (job_on, run_job):
        jobs.append(run(large))
        for peer in PEERS:
            theirs[peer.name] += [ran[0]] if (ran := run_peer(peer, folders[peer.timed_on])) else []
    job = min(jobs, key=working_seconds)
    ours = megabytes / working_seconds(job)
    files = corpus.read(large).num_rows
    yield Line("speed", "dedup.py", f"{ours:,.1f} MB/s on {files:,} files, {megabytes:,.0f} MB")
    whole = f"{megabytes / job.measured.seconds:,.1f} MB/s"
    times = f"{job.measured.seconds:,.0f} s, {start_up_seconds():.0f} s of them start-up"
    yield Line("speed", "dedup.py with Spark's start-up", f"{whole} ({times})")
    for peer in PEERS:
        yield _compared(peer, ours, folders[peer.timed_on], theirs[peer.name])
    for name, speed_quoted in QUOTED.items():
        yield Line("speed", f"times {name}, quoted", f"{ours / speed_quoted:,.1f} (it: {speed_quoted:,.1f} MB/s)")


def growth() -> Iterator[Line]:
    """Four times the files take four times the time; files eight times as long shuffle no more."""
    folders = corpus.real_corpora()
    large, quarter = job_on(folders["large"]), job_on(folders["quarter"])
    bytes_ratio = _megabytes(folders["large"]) / _megabytes(folders["quarter"])
    ratio = working_seconds(large) / working_seconds(quarter)
    what = f"time for {bytes_ratio:.2f} times the text"
    aside = f" ({working_seconds(quarter):,.1f} s, {working_seconds(large):,.1f} s)"
    yield at_most("growth", what, ratio, GROWTH_BAR * bytes_ratio, "{:,.2f}", aside)
    peaks = (job.measured.java_peak_bytes / 1e6 for job in (quarter, large))
    yield Line("growth", "memory of the JVM, one quarter and all", "{:,.0f} MB, {:,.0f} MB".format(*peaks))
    short, long = (job_on(folders[name]).shuffle_bytes / corpus.SHORT_FILES for name in ("short", "long"))
    what = f"shuffle of files {corpus.LONG_FACTOR} times as long"
    aside = f" ({short:,.0f} bytes a file, {long:,.0f})"
    yield at_most("growth", what, long / short, SHUFFLE_BAR, "{:,.2f}", aside)


def memory() -> Iterator[Line]:
    """A million small files, a fifth of which meet in one band, with little memory for the JVM."""
    folder = synthetic_corpus()
    job = run_job(folder, options=small_heap(SMALL_HEAP), every_seconds=OFTEN_SECONDS)
    peak, executor, java, workers = (value / 1e6 for value in job.measured[1:])
    aside = f" (JVM {java:,.0f}, Python workers {workers:,.0f}; with the driver's Python {peak:,.0f})"
    what = f"peak of the executor, a million files, MB; heap of {SMALL_HEAP}"
    yield at_most("memory", what, executor, MEMORY_BAR_BYTES / 1e6, "{:,.0f}", aside)
    yield Line("memory", "time for a million files", f"{working_seconds(job):,.0f} s, {_megabytes(folder):,.0f} MB")
    yield Line("memory", "shuffle of a million files", f"{job.shuffle_bytes / 1e6:,.0f} bytes a file")


def encoding() -> Iterator[Line]:
    """Token ids beside those of `tokenizers`."""
    return token_layer.encoding_lines()


def shards() -> Iterator[Line]:
    """The whole job from documents to shards beside datatrove."""
    return token_layer.shards_lines()


def reading() -> Iterator[Line]:
    """Token shards in the page cache, read by one process."""
    found = figures()
    yield at_least("reading", "million tokens a second, in sequence", found["sequential"], SEQUENTIAL_BAR, "{:,.0f}")
    order, flat = found["training_order"], found["nanogpt_order"]
    aside = f" (windows of a flat file as nanoGPT reads them: {flat:,.0f})"
    yield at_least("reading", "million tokens a second, in training's order", order, ORDER_BAR, "{:,.0f}", aside)
    many = found["training_order_of_many"]
    aside = f" (first {found['first_touch_microseconds']:,.0f} µs for each, once)"
    yield at_least("reading", f"the same from {MANY:,} shards", many, ORDER_BAR, "{:,.0f}", aside)
    yield at_most("reading", f"seconds to open {MANY:,} shards", found["open_seconds"], OPEN_BAR_SECONDS)
    what = "bytes of memory for a shard that was touched"
    yield at_most("reading", what, found["touched_bytes"], SHARD_BAR_BYTES, "{:,.0f}")


def loader() -> Iterator[Line]:
    """Batches of training, made by one thread from shards in the page cache."""
    found = training_loader.figures()
    aside = f" (of 2,048: {found['causal_2048']:,.0f}; with positions of documents: {found['documents_1024']:,.0f})"
    what = "million tokens a second, in sequences of 1,024"
    yield at_least("loader", what, found["causal_1024"], LOADER_BAR, "{:,.0f}", aside)
    what = "milliseconds to resume at sequence 10^12"
    yield at_most("loader", what, found["resume_milliseconds"], RESUME_BAR_MILLISECONDS)


def training() -> Iterator[Line]:
    """Tokens a second of training, beside a bare loop and Trainer."""
    return training_speed.training_lines()


def gpu() -> Iterator[Line]:
    """Larger models on one GPU, beside a bare compiled loop."""
    return training_speed.gpu_lines()


@cache
def _truth() -> tuple[Truth, int]:
    """All similar pairs of the accuracy corpus, and how many of them brute force has confirmed."""
    print("exact truth: joining all pairs ...", file=sys.stderr, flush=True)
    table = corpus.read(corpus.real_corpora()["accuracy"])
    truth = similar_pairs(table["content"], min(THRESHOLDS))
    return truth, check(truth, table["content"], _families(table, CHECKED_FILES), min(THRESHOLDS))


def _families(table: pa.Table, count: int) -> np.ndarray:
    """Rows of randomly chosen families, so that there are similar files among them."""
    names = zip(table["repo_name"].to_pylist(), table["path"].to_pylist(), strict=True)
    families = np.array([corpus.File(b"", *name).family for name in names])
    return np.argsort(families, kind="stable")[:count]


@cache
def _megabytes(folder: Path) -> float:
    return corpus.content_bytes(folder) / 1e6


def _compared(peer: Peer, ours: float, documents: Path, seconds: list[float]) -> Line:
    """How many times as fast as a peer, which took so many seconds; a peer that is not to be had misses no bar."""
    what = f"times {peer.name}"
    if not seconds:
        return Line("speed", what, "left out, see above")
    theirs = _megabytes(documents) / min(seconds)
    aside = f" (it: {theirs:,.1f} MB/s)"
    if peer.speed_bar is None:
        return Line("speed", what, f"{ours / theirs:,.1f}{aside}")
    return at_least("speed", what, ours / theirs, peer.speed_bar, "{:,.1f}", aside)


def _told(verdict: Verdict, speed: float) -> str:
    shares = f"{verdict.unjustified_share:.1%} of removals unjustified, {verdict.residual_share:.2%} of kept residual"
    return f"{shares}, {speed:,.1f} MB/s"


def _finished(name: str, lines: Iterator[Line]) -> Iterator[Line]:
    """The lines of a part; a part that breaks off fails, and the others go on."""
    try:
        yield from lines
    except RuntimeError as error:
        print(error, file=sys.stderr)
        yield Line(name, "broke off", "see above", "", False)


def main() -> int:
    parts = {
        part.__name__: part
        for part in (accuracy, peers, speed, growth, memory, encoding, shards, reading, loader, training, gpu)
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts), help="the parts to run")
    chosen = parser.parse_args().only
    lines = [line for name in chosen for line in _finished(name, parts[name]())]
    print(rendered(lines))
    return int(any(line.passed is False for line in lines))


if __name__ == "__main__":
    sys.exit(main())
