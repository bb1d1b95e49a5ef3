"""The funnel from files in to files kept: what each stage took away, for which reason, and what was left."""

from collections.abc import Mapping
from typing import NamedTuple

from spark_jobs.rules.states import KEPT

# The stages in the order in which they judge a file, and the states that each gives.
INGEST = ("empty", "binary", "oversized", "undecodable", "unreadable")
DEDUP = ("exact copy", "near-duplicate")
STAGES = ("ingest", "filter", "other", "decontaminate", "dedup")


class Step(NamedTuple):
    """What one state took away, and what was left after it."""

    stage: str
    state: str
    files: int
    bytes: int
    files_left: int
    bytes_left: int


def stage_of(state: str) -> str:
    """The stage that gives a state."""
    if state in INGEST:
        return "ingest"
    if state.startswith("filtered: "):
        return "filter"
    if state == "contaminated":
        return "decontaminate"
    return "dedup" if state in DEDUP else "other"


def steps_of(states: Mapping[str, Mapping[str, int]]) -> list[Step]:
    """The removals stage by stage, the largest of a stage first, but exact copies before near-duplicates.

    Args:
        states: files and bytes of each state of the ledger.
    """
    files = sum(sums["files"] for sums in states.values())
    size_bytes = sum(sums["bytes"] for sums in states.values())
    copies_first = {state: number for number, state in enumerate(DEDUP)}
    removed = [
        (STAGES.index(stage_of(state)), copies_first.get(state, -sums["files"]), state)
        for state, sums in states.items()
    ]
    steps = []
    for stage, _, state in sorted(removed):
        if state != KEPT:
            files, size_bytes = files - states[state]["files"], size_bytes - states[state]["bytes"]
            steps.append(Step(STAGES[stage], state, **_counts(states[state]), files_left=files, bytes_left=size_bytes))
    kept = states.get(KEPT, {"files": 0, "bytes": 0})
    assert (files, size_bytes) == (kept["files"], kept["bytes"])
    return steps


def _counts(sums: Mapping[str, int]) -> dict[str, int]:
    return {"files": sums["files"], "bytes": sums["bytes"]}
