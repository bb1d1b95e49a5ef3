"""What the model writes while it trains: a few prompts continued at each evaluation, kept in samples.jsonl."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.encode import FILE_SEPARATOR, REPOSITORY_NAME
from training.decoding import Sampling, choose, generator_for
from training.watch import Watch

if TYPE_CHECKING:
    from training.processes import Processes

Sample = dict[str, Any]


class Samples:
    """Continues the same prompts at every evaluation.

    Args:
        path: samples.jsonl; rows beyond `step` are dropped, so that a resumed run has each sample once.
        tokenizer: tokenizer.json of the shards.
        end_of_text_id: where a sample ends, as it does where the next file of a repository begins; an empty prompt
            begins after it.
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
        end_of_text_id: int,
        context_tokens: int,
        watch: Watch,
        seed: int,
        step: int,
    ) -> None:
        from tokenizers import Tokenizer

        self._path, self._watch, self._seed = path, watch, seed
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._new = min(watch.sample_tokens, context_tokens - 1)
        room = context_tokens - self._new
        encoded = [self._tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in watch.prompts]
        named = (self._tokenizer.token_to_id(name) for name in (FILE_SEPARATOR, REPOSITORY_NAME))
        self._ends = [end_of_text_id, *(one for one in named if one is not None)]
        self._rows = [(ids or [end_of_text_id])[-room:] for ids in encoded]
        self._step = step

    def write(self, engine: Any, processes: "Processes", step: int) -> None:
        """Continue the prompts with the weights of a step; every process must call, the first one writes.

        All take the same number of passes, because a model that ZeRO stage 3 has cut is put together by all of them
        at once. The whole text is read anew for each token, in one shape: for some dozens of tokens that is cheap,
        and nothing has to be compiled twice.
        """
        if not self._new or not self._rows or not writes_text(engine.module):
            return
        written = continuations(
            engine,
            self._rows,
            new_tokens=self._new,
            ends=self._ends,
            sampling=Sampling(self._watch.temperature),
            seeds=[(self._seed, step, number) for number in range(len(self._rows))],
        )
        if not processes.is_first:
            return
        rows = [
            {"step": step, "prompt": prompt, "completion": self._tokenizer.decode(ids)}
            for prompt, ids in zip(self._watch.prompts, written, strict=True)
        ]
        before = [row for row in read_samples(self._path) if row["step"] <= self._step]
        self._step = step
        partial = self._path.with_suffix(".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in before + rows))
        partial.replace(self._path)


def continuations(
    engine: Any,
    rows: Sequence[Sequence[int]],
    *,
    new_tokens: int,
    ends: Sequence[int],
    sampling: Sampling,
    seeds: Sequence[tuple[object, ...]],
) -> list[list[int]]:
    """`new_tokens` ids after each row, up to the first of `ends`; rows are padded on the right, where none looks."""
    import torch

    length = max(map(len, rows)) + new_tokens
    ids = torch.full((len(rows), length), ends[0])
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    begins = torch.tensor([len(row) for row in rows])
    every, generators = torch.arange(len(rows)), [generator_for(*seed) for seed in seeds]
    was_training = engine.training
    engine.eval()
    with torch.no_grad():
        for place in range(new_tokens):
            logits = engine(input_ids=ids.to(engine.device), use_cache=False).logits
            chosen = choose(logits[every, begins + place - 1], sampling, generators)
            ids[every, begins + place] = chosen
    engine.train(was_training)
    written = [row[begin : begin + new_tokens].tolist() for row, begin in zip(ids, begins.tolist(), strict=True)]
    return [list(itertools.takewhile(lambda one: one not in ends, row)) for row in written]


def writes_text(module: Any) -> bool:
    """Whether a model predicts the next token of a text, as masked and encoder-decoder models do not."""
    return bool(module.can_generate()) and not module.config.is_encoder_decoder


def read_samples(path: Path) -> list[Sample]:
    """The rows of a samples.jsonl, without a last one that was cut off; empty where there is no file."""
    rows: list[Sample] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
