"""The folder of a run: its plan, whether it may be begun, gone on with or is done, and where everything lies."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tokenizer.encode import TOKENIZER_FILE, Encoder
from tokenizer.shards import ShardIndex
from training.config import Recipe
from training.durable import PARTIAL, write_durably
from training.marker import MARKER
from training.meter import Row, read_metrics, write_metrics
from training.optimizer import Planned
from training.run_lock import LOCK

TOLERANCE, LEAST_SHARE = 0.02, 0.1
RESULTS = ("steps", "tokens", "loss", "tokens_per_second")  # what every summary says
FREE_TO_CHANGE = ("batch.sequences_per_device",)  # how a step is cut, not what it computes


@dataclass(frozen=True)
class Rewind:
    """That the run went back.

    Args:
        from_step: the bad step after which it did.
        to_step: where it went on from; the data of the steps between is never seen again.
        skipped: steps between that had been skipped.
    """

    from_step: int
    to_step: int
    skipped: int


@contextlib.contextmanager
def _damage_told(path: Path) -> Iterator[None]:
    """A file of the run that is not as it was written, as a ValueError that names it."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error}); put it back, or begin anew in another folder") from None


def _left_out(step: int, rewinds: tuple[Rewind, ...]) -> int:
    """Steps' worth of data that are left out before a step: what was consumed up to a rewind is never seen again."""
    for number in reversed(range(len(rewinds))):
        rewind = rewinds[number]
        if rewind.to_step < step:
            return rewind.from_step - rewind.to_step + _left_out(rewind.from_step, rewinds[:number])
    return 0


@dataclass(frozen=True)
class Plan:
    """What a run set out to do; `plan.json` holds it from the first moment on.

    Args:
        recipe: the settings that decide what a step computes.
        data_fingerprint: of the training split.
        vocab_size: of the shards, hence of the model.
        end_of_text_id: the token that ends a document.
        planned: pairs (from this step on, the run ends at that step), see `optimizer.progress`; more than one where
            the length was revised, to keep to the minutes given or because more steps were asked for later.
        rewinds: when the run went back, and thereby which data it leaves out.
        begun_by: the job of Slurm that began it; empty = none.
    """

    recipe: Recipe
    data_fingerprint: str
    vocab_size: int
    end_of_text_id: int
    planned: Planned
    rewinds: tuple[Rewind, ...] = ()
    begun_by: str = ""

    @property
    def is_of_this_job(self) -> bool:
        """Whether the job that began it runs now, queued again since: its --overwrite has been done."""
        again = os.environ.get("SLURM_RESTART_COUNT", "0") != "0"
        return again and self.begun_by == this_job()

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the whole run, as planned now; 0 = not known yet."""
        return self.planned[-1][1] if self.planned else 0

    def consumed(self, step: int) -> int:
        """The first training sequence of a step, from 1 on: all before it were seen or left out."""
        return (step - 1 + _left_out(step, self._rewinds_before(step))) * self.recipe.batch.sequences

    def seen(self, step: int) -> int:
        """Training sequences up to the end of a step, those left out included."""
        return self.consumed(step) + self.recipe.batch.sequences if step else 0

    def rewinds_told(self, step: int) -> dict[str, float | int]:
        """What the metrics of a step say of rewinds: how many, steps taken and skipped before them, the last one's."""
        before = self._rewinds_before(step)
        if not before:
            return {}
        told: dict[str, float | int] = {
            "rewinds": len(before),
            "steps_rewound": sum(one.from_step - one.to_step for one in before),
            "skipped_steps_rewound": sum(one.skipped for one in before),
        }
        return told | ({"rewound_from": before[-1].from_step} if before[-1].to_step == step - 1 else {})

    def _rewinds_before(self, step: int) -> tuple[Rewind, ...]:
        """Those that had happened when a step was taken for the last time, oldest first."""
        count = max((number for number, one in enumerate(self.rewinds, 1) if one.to_step < step), default=0)
        return self.rewinds[:count]

    def ending(self, begin: int, max_steps: int) -> "Plan":
        """The plan with another end from step `begin` on; unchanged if it has that end or was revised later."""
        if max_steps == self.max_steps or (self.planned and self.planned[-1][0] > begin):
            return self
        kept = tuple(pair for pair in self.planned if pair[0] < begin)
        return replace(self, planned=(*kept, (begin, max_steps)))

    def keeping_time(self, step: int, seconds_left: float, seconds_per_step: float) -> "Plan":
        """The plan with the end that the remaining time allows, where that differs by more than TOLERANCE.

        However late the run is, LEAST_SHARE of the steps left are taken, for the learning rate to come down.
        """
        left = self.max_steps - step
        possible = max(1, round(LEAST_SHARE * left), round(seconds_left / seconds_per_step))
        return self if abs(possible - left) <= TOLERANCE * left else self.ending(step, step + possible)

    def model_config(self) -> Any:
        """The `transformers` configuration of the run's model."""
        from training.objectives import configuration

        return configuration(
            self.recipe.objective,
            self.recipe.model,
            vocab_size=self.vocab_size,
            context_tokens=self.recipe.batch.sequence_length,
            end_of_text_id=self.end_of_text_id,
        )


class RunFolder:
    """RUN: plan.json, data.json, metrics.jsonl, samples.jsonl, tokenizer/, checkpoints/, tensorboard/, and, when done,
    export/, run.html and summary.json; rewound.jsonl where steps were gone back from; wandb.id names it in wandb.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.rewound = self.path / "rewound.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.tokenizer = self.path / "tokenizer"
        self.export = self.path / "export"
        self.samples = self.path / "samples.jsonl"
        self.page = self.path / "run.html"
        self.data = self.path / "data.json"
        self._plan, self._summary = self.path / "plan.json", self.path / "summary.json"

    @property
    def plan(self) -> Plan | None:
        """The plan, or None where there is no run."""
        if not self._plan.is_file():
            return None
        with _damage_told(self._plan):
            record = json.loads(self._plan.read_text())
            del record["max_steps"]
            planned = tuple((begin, end) for begin, end in record.pop("planned"))
            rewinds = tuple(Rewind(**rewind) for rewind in record.pop("rewinds", ()))
            begun_by = record.pop("begun_by", "")
            recipe = Recipe.from_record(record.pop("recipe"))
            return Plan(recipe=recipe, planned=planned, rewinds=rewinds, begun_by=begun_by, **record)

    def record(self, plan: Plan) -> None:
        """Write the plan down, before any step that follows it."""
        write_durably(self._plan, asdict(plan) | {"max_steps": plan.max_steps})

    @property
    def summary(self) -> dict[str, Any] | None:
        """Results of a run that reached its last step, else None."""
        if not self._summary.is_file():
            return None
        with _damage_told(self._summary):
            record: dict[str, Any] = json.loads(self._summary.read_text())
            return {name: record[name] for name in (*RESULTS, *record)}

    def is_begun(self, recipe: Recipe, data_fingerprint: str, *, resume: bool, overwrite: bool) -> bool:
        """Whether a run of `recipe` on these shards is here to go on with; changes nothing.

        ValueError if the folder holds something else.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; choose another --output")
        nothing_yet = (self._plan.with_suffix(PARTIAL), self.path / LOCK)
        if not self.path.exists() or all(entry in nothing_yet for entry in self.path.iterdir()):
            return False
        plan = self.plan
        if plan is None:
            raise ValueError(f"{self.path} exists and is no training run; choose another --output")
        if overwrite and not plan.is_of_this_job:
            return False
        if not resume and not overwrite:
            raise ValueError(f"{self.path} holds a training run; choose another --output, or --overwrite")
        differences = [one for one in recipe.differences(plan.recipe) if not one.startswith(FREE_TO_CHANGE)]
        if data_fingerprint != plan.data_fingerprint:
            differences.append(f"data {data_fingerprint} (was {plan.data_fingerprint})")
        if differences:
            raise ValueError(
                f"{self.path} holds a run with other settings: {', '.join(differences)}; choose another --output, "
                "or --overwrite"
            )
        return True

    def begin(self, plan: Plan, tokenizer: Path, *, begun: bool) -> None:
        """Lay out the folder; what an earlier run left in it goes unless this one goes on with it."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not begun:  # the plan is the first to come and the last to go: whatever is here, it says that it is a run
            for marker in self.checkpoints.glob(f"*/{MARKER}"):
                marker.unlink()
            for entry in self.path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry not in (self._plan, self.path / LOCK):
                    entry.unlink()
        self.record(plan)
        self.checkpoints.mkdir(exist_ok=True)
        self.tokenizer.mkdir(exist_ok=True)
        shutil.copyfile(tokenizer, self.tokenizer / tokenizer.name)
        self._summary.unlink(missing_ok=True)

    def keep_rewound(self, step: int) -> None:
        """Keep the rows after `step`, which is gone back to, beside the metrics, which will have others.

        A run that is killed before its plan says so takes these steps again: the later rows stand.
        """

        def taken(row: Row) -> tuple[float, float]:
            return row.get("rewinds", 0), row["step"]

        rows = [row for row in read_metrics(self.metrics) if row["step"] > step]
        again = set(map(taken, rows))
        write_metrics(self.rewound, [row for row in read_metrics(self.rewound) if taken(row) not in again] + rows)

    def record_data(self, records: list[dict[str, Any]]) -> None:
        """Note what the data of each folder of shards is, for the model card."""
        write_durably(self.data, records)

    def read_data(self) -> list[dict[str, Any]]:
        """What `record_data` noted; nothing before."""
        if not self.data.is_file():
            return []
        with _damage_told(self.data):
            records: list[dict[str, Any]] = json.loads(self.data.read_text())
            return records

    def finish(self, summary: dict[str, Any]) -> None:
        """Record the results; from now on the run is done."""
        write_durably(self._summary, summary)


def this_job() -> str:
    """The job of Slurm that this process is of, which keeps its number when it is queued again; empty = none."""
    return os.environ.get("SLURM_JOB_ID", "")


def find_tokenizer(folder: Path, index: ShardIndex) -> Path:
    """The tokenizer.json in `folder`; ValueError if it is missing or is not the one that wrote the shards."""
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise ValueError(f"no {TOKENIZER_FILE} in {folder}; name the tokenizer's folder with --tokenizer")
    encoder = Encoder(folder)
    if (encoder.fingerprint, encoder.vocab_size) != (index.tokenizer_fingerprint, index.vocab_size):
        raise ValueError(
            f"{path} ({encoder.vocab_size} entries, fingerprint {encoder.fingerprint}) is not the tokenizer of the "
            f"shards ({index.vocab_size} entries, {index.tokenizer_fingerprint}); name theirs with --tokenizer"
        )
    return path
