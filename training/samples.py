"""What the model writes while it trains: a few prompts at each evaluation, kept in samples.jsonl."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenizer.encode import FILE_SEPARATOR, MASK, REPOSITORY_NAME
from training.config import Objective
from training.decoding import Sampling
from training.durable import read_json_lines
from training.objectives import Prediction
from training.watch import Watch
from training.writing import Ids, continuations, hidden_runs, hidden_tokens, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from training.processes import Processes

Sample = dict[str, Any]


class Samples:
    """Has the same prompts continued at every evaluation; or, by objective, what is hidden of them filled in.

    A row of the file is a step, a `prompt` as the model reads it, and the `completion` that it writes: what follows;
    the whole prompt again, with what a masked model puts in the place of hidden tokens; or the hidden runs, each after
    its sentinel. The same tokens are hidden at every evaluation.

    Args:
        path: samples.jsonl; rows beyond `step` are dropped, so that a resumed run has each sample once.
        tokenizer: tokenizer.json of the shards.
        objective: of the run; `predict` hides tokens as in training.
        end_of_text_id: where a sample ends, as it does where the next file of a repository begins; an empty prompt
            begins after it. There is nothing to hide in one of fewer than two tokens: it is left out then.
        context_tokens: the model's context.
        watch: prompts, length and temperature.
        seed: of the run; with step and number of the prompt it keys what is drawn.
        step: the last step already taken.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: Path,
        *,
        objective: Objective,
        predict: Prediction,
        end_of_text_id: int,
        context_tokens: int,
        watch: Watch,
        seed: int,
        step: int,
    ) -> None:
        from tokenizers import Tokenizer

        self._path, self._watch, self._seed, self._step = path, watch, seed, step
        self._kind, self._predict, self._end = objective.kind, predict, end_of_text_id
        self._tokenizer, self._context = Tokenizer.from_file(str(tokenizer)), context_tokens
        encoded = [self._tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in watch.prompts]
        self._rows: list[Ids] = [ids[-context_tokens:] for ids in encoded]

    def write(self, engine: Any, processes: "Processes", step: int, stops: "Callable[[], bool]") -> bool:
        """Have the weights of a step write; every process must call, the first one writes the file.

        False, and nothing is written, if `stops`, which is asked before each token and says the same on every process.
        """
        if not self._watch.sample_tokens or not self._rows:
            return True
        ways = {"masked": self._filled_in, "spans": self._runs}
        written = ways.get(self._kind, self._continued)(engine, step, stops)
        if written is None or not processes.is_first:
            return written is not None
        rows = [{"step": step, "prompt": prompt, "completion": text} for prompt, text in written]
        before = [row for row in read_samples(self._path) if row["step"] <= self._step and row["step"] < step]
        self._step = step
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in before + rows))
        partial.replace(self._path)
        return True

    def _continued(self, engine: Any, step: int, stops: "Callable[[], bool]") -> list[tuple[str, str]] | None:
        new = min(self._watch.sample_tokens, self._context - 1)
        rows = [(ids or [self._end])[-(self._context - new) :] for ids in self._rows]
        named = (self._tokenizer.token_to_id(name) for name in (FILE_SEPARATOR, REPOSITORY_NAME))
        ends = [self._end, *(one for one in named if one is not None)]
        written = continuations(
            engine,
            rows,
            new_tokens=new,
            ends=ends,
            sampling=self._sampling,
            seeds=self._seeds(step, len(rows)),
            stops=stops,
        )
        if written is None:
            return None
        texts = map(self._tokenizer.decode, written)
        return list(zip(self._watch.prompts, texts, strict=True))

    def _filled_in(self, engine: Any, step: int, stops: "Callable[[], bool]") -> list[tuple[str, str]] | None:
        read, mask = self._hidden(), self._tokenizer.token_to_id(MASK)
        if not read:
            return []
        assert mask is not None, MASK
        found = hidden_tokens(engine, read, mask=mask, sampling=self._sampling, seeds=self._seeds(step, len(read)))
        return [(self._text(shown(one, mask)), self._text(ids)) for one, ids in zip(read, found, strict=True)]

    def _runs(self, engine: Any, step: int, stops: "Callable[[], bool]") -> list[tuple[str, str]] | None:
        read = self._hidden()
        if not read:
            return []
        found = hidden_runs(
            engine,
            read,
            new_tokens=self._watch.sample_tokens,
            end=self._end,
            sampling=self._sampling,
            seeds=self._seeds(step, len(read)),
            stops=stops,
        )
        if found is None:
            return None
        texts = (self._text(one["input_ids"][0].tolist()) for one in read)
        return list(zip(texts, map(self._text, found), strict=True))

    def _hidden(self) -> list[Any]:
        """What the objective makes of each prompt that has something to hide."""
        rows = enumerate(self._rows)
        # Rows have one token more than a model reads.
        return [self._predict(np.array([[*ids, self._end]]), [f"sample:{number}"]) for number, ids in rows if ids[1:]]

    def _text(self, ids: Ids) -> str:
        """Special tokens are seen: they are what stands for hidden ones."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    @property
    def _sampling(self) -> Sampling:
        return Sampling(self._watch.temperature)

    def _seeds(self, step: int, count: int) -> list[tuple[object, ...]]:
        return [(self._seed, step, number) for number in range(count)]


def read_samples(path: Path) -> list[Sample]:
    """The rows of a samples.jsonl, without lines that are broken or are no rows; empty where there is no file."""
    kinds = {"step": int, "prompt": str, "completion": str}
    rows = read_json_lines(path)
    return [row for row in rows if all(isinstance(row.get(name), kind) for name, kind in kinds.items())]
