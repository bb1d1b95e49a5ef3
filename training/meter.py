"""What can be seen of a run: metrics.jsonl, TensorBoard, wandb and one line on the terminal, all from one process."""

import collections
import importlib.util
import json
import logging
import math
import os
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tokenizer.shard_index import write_whole
from training.durable import read_json_lines

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

Row = dict[str, float | int]
LINE_SECONDS = 5.0
RECENT_STEPS, FEW_STEPS = 100, 4
WANDB_ID = "wandb.id"
log = logging.getLogger("train")


class Meter:
    """Records one row a step: step, loss, tokens, tokens_per_second, learning_rate, gradient_norm, seconds, epoch.

    Steps that were evaluated carry validation_loss, perplexity, bits_per_byte and evaluation_seconds too. `tokens`
    are all those trained on so far; `loss` is in nats a token, the mean of the global batch. `gauges.Gauges` adds what
    the step cost. The first row after a resumption has `resumed` 1.

    `training_bits_per_byte` and `bits_per_byte` are the losses in bits, by the bytes that a token of the whole split
    has on average: they compare models of different tokenizers. Where the middle is filled in, markers are predicted
    too, and they are about so.

    Args:
        metrics: path of metrics.jsonl; rows beyond `step` are dropped, so that a resumed run has each step once.
        tensorboard: folder of event files.
        step: the last step already taken.
        max_steps: of the run, for the time left.
        bytes_per_token: of the training split, and of the held-out one; 0 = its loss has neither bits per byte nor
            perplexity.
        wandb: project to show the run in as well, under the name of the run's folder; None = not.

    `seconds` are those of all steps so far.
    """

    def __init__(
        self,
        metrics: Path,
        tensorboard: Path,
        *,
        step: int,
        max_steps: int,
        bytes_per_token: tuple[float, float] = (0.0, 0.0),
        wandb: str | None = None,
    ) -> None:
        self.max_steps, self._bytes_per_token, self._metrics = max_steps, bytes_per_token, metrics
        self._begins = True  # no step was taken since this start
        self._wandb = _wandb_run(wandb, metrics.parent) if wandb else None
        self._board: SummaryWriter = _writer(tensorboard, purge_step=step + 1)
        rows = [row for row in read_metrics(metrics) if row["step"] <= step]
        if lost := step - len({row["step"] for row in rows}):
            log.warning("%s lacks %s of the steps up to %s", metrics, f"{lost:,}", f"{step:,}")
        write_metrics(metrics, rows)
        self._file: IO[str] = metrics.open("a")
        self._line_due = 0.0
        self.seconds = sum(row["seconds"] for row in rows)
        self._earlier = [row["seconds"] for row in rows[-RECENT_STEPS:]]
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT_STEPS)

    def record(self, row: Row) -> None:
        """Append the row of a step and show it."""
        row |= self._of_text(row)
        if self._begins and row["step"] > 1 and "rewound_from" not in row:  # going back is told as such
            row["resumed"] = 1
        try:
            self._file.write(_line(row))
            self._file.flush()
        except OSError as error:
            raise OSError(f"{self._metrics} cannot be written: {error.strerror}; the same command goes on") from error
        self.seconds += row["seconds"]
        if not self._begins:
            self._recent.append(row["seconds"])
        elif not self._earlier:
            self._earlier.append(row["seconds"])
        self._begins = False
        self._tell(row, int(row["step"]))
        self._show(row, int(row["step"]))

    def complete(self, step: int, figures: Row) -> None:
        """Add to the row of the last step, at which a run was stopped, what was found of that step since."""
        figures |= self._of_text(figures)
        rows = [row | figures if row["step"] == step else row for row in read_metrics(self._metrics)]
        self._file.close()
        write_metrics(self._metrics, rows)
        self._file = self._metrics.open("a")
        self._tell(figures, step)
        if rows and rows[-1]["step"] == step:
            self._show(rows[-1], step)

    def _of_text(self, row: Row) -> Row:
        """What the losses of a row say of the text, where they are those of its tokens, one after the other."""
        (training, held_out), found = self._bytes_per_token, Row()
        if training and "loss" in row:
            found["training_bits_per_byte"] = round(bits_per_byte(row["loss"], training), 6)
        if held_out and "validation_loss" in row:
            loss = row["validation_loss"]
            found |= {"perplexity": math.exp(min(loss, 700)), "bits_per_byte": bits_per_byte(loss, held_out)}
        return found

    @property
    def seconds_per_step(self) -> float:
        """Mean of the last RECENT_STEPS steps since this start, whose first may compile; while few, with earlier ones.

        What earlier starts took may have been on other hardware.
        """
        known = self._recent if len(self._recent) >= FEW_STEPS else [*self._earlier, *self._recent]
        return sum(known) / len(known)

    def flush(self) -> None:
        """Have every row on the disk: call it before a checkpoint that counts them."""
        os.fsync(self._file.fileno())
        self._board.flush()

    def close(self) -> None:
        """Finish the files."""
        self._file.close()
        self._board.close()
        if self._wandb:
            self._wandb.finish()

    def _tell(self, row: Row, step: int) -> None:
        """TensorBoard, and wandb."""
        figures = {name: value for name, value in row.items() if name != "step"}
        for name, value in figures.items():
            kind = "validation" if name in ("validation_loss", "perplexity", "bits_per_byte") else "train"
            self._board.add_scalar(f"{kind}/{name}", value, step)
        if self._wandb:
            self._wandb.log({"step": step} | figures)

    def _show(self, row: Row, step: int) -> None:
        """One line, rewritten in place on a terminal, every few seconds elsewhere; evaluations get their own."""
        terminal, now = sys.stderr.isatty(), time.monotonic()
        evaluated = "validation_loss" in row
        if not (terminal or evaluated or now >= self._line_due or step == self.max_steps):
            return
        self._line_due = now + LINE_SECONDS
        left = (self.max_steps - step) * self.seconds_per_step
        line = f"step {step}/{self.max_steps}  {'  '.join(_figures(row))}  {clock(left)} left"
        if evaluated:
            bits = f", {row['bits_per_byte']:.3f} bits per byte" if "bits_per_byte" in row else ""
            line += f"  |  held-out loss {row['validation_loss']:.3f}{bits}"
        end = "\n" if evaluated or not terminal or step == self.max_steps else ""
        print(f"\r{line}\x1b[K" if terminal else line, end=end, file=sys.stderr, flush=True)


def _figures(row: Row) -> list[str]:
    """The parts of the line that tell of a step, as far as it has them."""
    told = [
        ("loss", "loss {:.3f}", 1),
        ("training_bits_per_byte", "{:.3f} bits/byte", 1),
        ("gradient_norm", "norm {:.2f}", 1),
        ("learning_rate", "lr {:.2e}", 1),
        ("tokens_per_second", "{:,.0f} tokens/s", 1),
        ("mfu", "MFU {:.1f} %", 100),
        ("memory_bytes", "{:.2f} GB", 1e-9),
        ("longest_data_wait_seconds", "data {:.1f} %", 100 / (row["seconds"] or 1)),
    ]
    return [form.format(row[name] * factor) for name, form, factor in told if name in row]


def read_metrics(path: Path) -> list[Row]:
    """The rows of a metrics.jsonl, null as nan, without lines that are broken or no rows; none where it is absent."""
    rows = filter(_is_row, read_json_lines(path))
    return [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]


def _is_row(row: dict[str, Any]) -> bool:
    """Whether a line holds nothing but figures, those among them that every step has."""
    counts = (row.get(name) for name in ("step", "tokens", "seconds"))
    figures = (value for value in row.values() if value is not None)
    return "loss" in row and all(isinstance(value, int | float) for value in (*counts, *figures))


def last_finite(rows: Sequence[Row], name: str) -> Row | None:
    """The last row that has a figure which is finite, as a loss of a step that was skipped may not be."""
    return next((row for row in reversed(rows) if math.isfinite(row.get(name, math.nan))), None)


def tokens_per_second(rows: Sequence[Row]) -> float:
    """Mean of the steps that are there, one or more; each has as many tokens as the others."""
    return rows[-1]["tokens"] / rows[-1]["step"] * len(rows) / sum(row["seconds"] for row in rows)


def write_metrics(path: Path, rows: list[Row]) -> None:
    """Put rows in the place of a metrics.jsonl, all or none."""
    write_whole(path, "".join(map(_line, rows)).encode())


def _line(row: Row) -> str:
    """A row as strict JSON: a figure that is not finite, of a step that was skipped, is null."""
    return json.dumps({name: value if math.isfinite(value) else None for name, value in row.items()}) + "\n"


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """A loss in nats a token as bits a byte of UTF-8."""
    return loss / math.log(2) / bytes_per_token


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def require_wandb() -> None:
    """ValueError where wandb is asked for and not installed; imports nothing."""
    if importlib.util.find_spec("wandb") is None:
        raise ValueError("wandb is not installed; pip install wandb, or leave --watch.wandb out")


def _wandb_run(project: str, folder: Path) -> Any:
    """A run in a wandb project, which goes on where the one of this folder was.

    Steps are a figure of its rows and the axis of the others: rows whose own step is below the last would be dropped,
    and a run that goes on from a checkpoint, or goes back to one, takes some steps again.
    """
    import wandb

    kept = folder / WANDB_ID
    if not kept.is_file():
        write_whole(kept, secrets.token_hex(8).encode())
    run = wandb.init(project=project, name=folder.resolve().name, id=kept.read_text(), resume="allow", dir=str(folder))
    run.define_metric("*", step_metric="step")
    return run


def _writer(folder: Path, purge_step: int) -> "SummaryWriter":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=purge_step)
