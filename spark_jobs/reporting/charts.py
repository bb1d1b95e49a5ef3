"""The geometry of the page's drawings, in pixels of an SVG that is WIDTH wide; the template draws them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from spark_jobs.reporting.figures import Histogram
from spark_jobs.reporting.funnel import Step
from spark_jobs.reporting.training_run import TrainingRun

WIDTH = 940


class Axis(NamedTuple):
    """A linear axis from value `low` at pixel `begin` to `high` at `end`, with the values of its ticks."""

    low: float
    high: float
    begin: float
    end: float
    ticks: list[float]

    def at(self, value: float) -> float:
        """The pixel of a value, to a tenth."""
        share = (value - self.low) / ((self.high - self.low) or 1)
        return round(self.begin + share * (self.end - self.begin), 1)


def axis(low: float, high: float, begin: float, end: float, ticks: int = 6) -> Axis:
    """An axis over at least [low, high], its bounds and about `ticks` ticks on round numbers."""
    if high <= low:
        high = low + (abs(low) or 1)
    rough = (high - low) / ticks
    power = 10.0 ** math.floor(math.log10(rough))
    distance = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / distance + 1e-9), math.ceil(high / distance - 1e-9)
    values = [round(number * distance, 12) for number in range(first, last + 1)]
    return Axis(values[0], values[-1], begin, end, values)


def funnel_chart(total: tuple[int, int], steps: Sequence[Step], splits: Sequence[tuple[str, Any]]) -> list[Any]:
    """Rows of two bars, files and bytes: what a step took away (from `lost_x` on) after what it left.

    Args:
        total: files and bytes in.
        steps: the removals.
        splits: name of each split that the kept files went to, and its sums of files, bytes and tokens.
    """
    panels = ((216, 250), (590, 250))
    files_left, bytes_left = (steps[-1].files_left, steps[-1].bytes_left) if steps else total
    rows = [("in", "files in", total, total)]
    rows += [(step.stage, step.state, (step.files, step.bytes), (step.files_left, step.bytes_left)) for step in steps]
    rows.append(("kept", "kept", (files_left, bytes_left), (files_left, bytes_left)))
    for split, sums in splits:
        amounts = (sums["files"], sums["bytes"])
        rows.append((split, split, amounts, amounts))
    drawn = []
    for number, (kind, label, amounts, left) in enumerate(rows):
        whole = kind not in {step.stage for step in steps}
        bars = []
        for (x, width), amount, remaining, all_ in zip(panels, amounts, left, total, strict=True):
            scale = width / (all_ or 1)
            bars.append(
                {
                    "x": x,
                    "left": round(remaining * scale, 1),
                    "lost_x": round(x + (0 if whole else remaining * scale), 1),
                    "lost": round(max(amount * scale, 1.0 if amount else 0), 1),
                    "amount": amount,
                    "text_x": x + width + 8,
                }
            )
        drawn.append({"kind": kind, "label": label, "y": 30 + number * 24, "whole": whole, "bars": bars})
    return drawn


def histogram_chart(histogram: Histogram) -> dict[str, Any]:
    """Bars of the similarities of near-duplicates."""
    bins = histogram.bins
    y = axis(0, max([4, *(files for _, _, files in bins)]), 230, 20, 4)
    x = Axis(bins[0][0], bins[-1][1], 60, WIDTH - 20, [low for low, _, _ in bins] + [bins[-1][1]])
    bars = [
        {"x": x.at(low) + 1, "width": round(x.at(high) - x.at(low) - 2, 1), "y": y.at(files)}
        | {"height": round(230 - y.at(files), 1), "files": files}
        for low, high, files in bins
    ]
    return {"x": x, "y": y, "bars": bars, "height": 280}


def loss_chart(run: TrainingRun) -> dict[str, Any] | None:
    """The lines of training and held-out loss over steps; None if there is nothing to draw."""
    points = run.training_loss + run.validation_loss
    if not points:
        return None
    losses = [loss for _, loss in points]
    x = axis(0, max(step for step, _ in points), 60, WIDTH - 20, 8)
    y = axis(min(losses), max(losses), 300, 20, 6)
    training, validation = (
        [(x.at(step), y.at(loss)) for step, loss in points] for points in (run.training_loss, run.validation_loss)
    )
    return {"x": x, "y": y, "training": training, "validation": validation, "height": 350}
