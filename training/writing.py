"""What an engine writes after texts, or in the place of what is hidden from it, while it trains.

Every process must call: a model that ZeRO stage 3 has cut is put together by all of them at once, so all take the same
number of forward passes. The whole text is read anew for each token, in one shape: for some dozens of tokens that is
cheap, and nothing has to be compiled twice.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from training.decoding import Sampling, choose, generator_for
from training.micro_batch import IGNORED, Arrays

if TYPE_CHECKING:
    import torch

Ids = list[int]
Seeds = Sequence[tuple[object, ...]]
Stops = Callable[[], bool]  # whether to leave off; the same on every process


def continuations(
    engine: Any,
    rows: Sequence[Ids],
    *,
    new_tokens: int,
    ends: Sequence[int],
    sampling: Sampling,
    seeds: Seeds,
    stops: Stops,
) -> list[Ids] | None:
    """`new_tokens` ids after each row, up to the first of `ends`; rows are padded on the right, where none looks."""
    ids, _ = _padded(rows, ends[0], new_tokens)
    begins = [len(row) for row in rows]

    def logits() -> "torch.Tensor":
        return engine(input_ids=ids.to(engine.device), use_cache=False).logits  # type: ignore[no-any-return]

    return _one_by_one(engine, logits, ids, begins, new_tokens, ends, sampling, seeds, stops)


def hidden_runs(
    engine: Any, read: Sequence[Arrays], *, new_tokens: int, end: int, sampling: Sampling, seeds: Seeds, stops: Stops
) -> list[Ids] | None:
    """What the decoder of an encoder-decoder writes, up to `end`, of the runs hidden from each text.

    Args:
        read: of each text, what spans.Spans makes of it: `input_ids` (1, T).
    """
    import torch

    texts, seen = _padded([one["input_ids"][0].tolist() for one in read], end)
    ids = torch.full((len(read), 1 + new_tokens), end)

    def logits() -> "torch.Tensor":
        inputs = {"input_ids": texts, "attention_mask": seen, "decoder_input_ids": ids}
        there = {name: tensor.to(engine.device) for name, tensor in inputs.items()}
        return engine(**there, use_cache=False).logits  # type: ignore[no-any-return]

    return _one_by_one(engine, logits, ids, [1] * len(read), new_tokens, [end], sampling, seeds, stops)


def hidden_tokens(engine: Any, read: Sequence[Arrays], *, mask: int, sampling: Sampling, seeds: Seeds) -> list[Ids]:
    """Each text with what a masked model puts in the place of its hidden tokens, all of them at once.

    Args:
        read: of each text, what objectives.Masked makes of it: `input_ids` and `labels` (1, T).
        mask: id that stands where tokens are hidden.
    """
    import torch

    texts = [shown(one, mask) for one in read]
    ids, seen = _padded(texts, mask)
    with _only_reading(engine):
        logits = engine(input_ids=ids.to(engine.device), attention_mask=seen.to(engine.device)).logits
    for number, one in enumerate(read):
        places = torch.from_numpy(one["labels"][0] != IGNORED).nonzero().squeeze(1)
        draws = [generator_for(*seeds[number], place) for place in places.tolist()]
        ids[number, places] = choose(logits[number, places.to(logits.device)], sampling, draws)
    return [row[: len(text)].tolist() for row, text in zip(ids, texts, strict=True)]


def shown(read: Arrays, mask: int) -> Ids:
    """What objectives.Masked makes of one text, with the mask at every hidden token: in training some are others."""
    inputs, labels = read["input_ids"][0], read["labels"][0]
    return [mask if label != IGNORED else one for one, label in zip(inputs.tolist(), labels.tolist(), strict=True)]


def _padded(rows: Sequence[Ids], padding: int, more: int = 0) -> "tuple[torch.Tensor, torch.Tensor]":
    """Rows (B, longest + more) of ids, and which of them are rows' own (1) and not padding (0)."""
    import torch

    ids = torch.full((len(rows), max(map(len, rows)) + more), padding)
    own = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, : len(row)], own[number, : len(row)] = torch.tensor(row), 1
    return ids, own


def _one_by_one(
    engine: Any,
    logits: Any,
    ids: "torch.Tensor",
    begins: Sequence[int],
    new_tokens: int,
    ends: Sequence[int],
    sampling: Sampling,
    seeds: Seeds,
    stops: Stops,
) -> list[Ids] | None:
    """Fill `ids` from `begins` on, as the `logits` of the ids so far choose; what was filled in, up to an end.

    None if `stops`, which is asked before each token.
    """
    import torch

    every, places, generators = torch.arange(len(ids)), torch.tensor(begins), [generator_for(*seed) for seed in seeds]
    with _only_reading(engine):
        for number in range(new_tokens):
            if stops():
                return None
            found = logits()[every, places + number - 1]
            ids[every, places + number] = choose(found, sampling, generators)
    written = [row[begin : begin + new_tokens].tolist() for row, begin in zip(ids, begins, strict=True)]
    return [list(itertools.takewhile(lambda one: one not in ends, row)) for row in written]


@contextlib.contextmanager
def _only_reading(engine: Any) -> Iterator[None]:
    import torch

    was_training = engine.training
    engine.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        engine.train(was_training)
