"""What a training run left behind for a reader: its curve, its last figures and what the model writes."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

MAX_POINTS = 400
MAX_COMPLETIONS = 20
MAX_CHARACTERS = 4000

Points = list[tuple[float, float]]


class TrainingRun(NamedTuple):
    """A run as its metrics tell it: loss in nats a token by step, training (thinned) and held out."""

    steps: int
    tokens: int
    seconds: float
    training_loss: Points
    validation_loss: Points
    last: Mapping[str, float]
    held_out: Mapping[str, float]


class Completion(NamedTuple):
    """What a model was given and what it wrote, each cut to MAX_CHARACTERS."""

    prompt: str
    completion: str


def run_of(metrics: bytes) -> TrainingRun | None:
    """The run that a metrics.jsonl records; None before its first step. Figures that were not finite, which are null,
    and a last line that was cut off are left out.
    """
    known = ({name: value for name, value in row.items() if value is not None} for row in objects(metrics))
    rows = [row for row in known if "step" in row]
    if not rows:
        return None
    last = rows[-1]
    evaluated = [row for row in rows if "validation_loss" in row]
    return TrainingRun(
        steps=int(last["step"]),
        tokens=int(max(row.get("tokens", 0) for row in rows)),
        seconds=sum(row.get("seconds", 0.0) + row.get("evaluation_seconds", 0.0) for row in rows),
        training_loss=thinned(_points(rows, "loss")),
        validation_loss=thinned(_points(evaluated, "validation_loss")),
        last=last,
        held_out=evaluated[-1] if evaluated else {},
    )


def completions_of(completions: bytes) -> list[Completion]:
    """The first MAX_COMPLETIONS of a completions.jsonl."""
    found = [row for row in objects(completions) if "prompt" in row and "completion" in row]
    return [
        Completion(str(row["prompt"])[:MAX_CHARACTERS], str(row["completion"])[:MAX_CHARACTERS])
        for row in found[:MAX_COMPLETIONS]
    ]


def objects(lines: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects of JSON lines, up to the first line that is none."""
    for line in lines.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            return
        if isinstance(row, dict):
            yield row


def thinned(points: Sequence[tuple[float, float]], most: int = MAX_POINTS) -> Points:
    """At most `most` points: the means of runs of equal length, which keep the curve's shape and smooth its noise."""
    length = -(-len(points) // most) or 1
    means = []
    for first in range(0, len(points), length):
        group = points[first : first + length]
        means.append((sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)))
    return means


def _points(rows: Sequence[Mapping[str, float]], name: str) -> Points:
    return [(row["step"], row[name]) for row in rows if name in row and math.isfinite(row[name])]
