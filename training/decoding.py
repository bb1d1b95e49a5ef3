"""Next tokens from a causal model: one row or many at once, each with randomness of its own.

A row's draws are keyed by its own seed and not by its neighbours, so that what a prompt gets does not depend on what
it is batched with. In 16 bits that holds up to rounding: padding changes it, and two tokens that are nearly equally
probable may change places.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen.

    Args:
        temperature: 0 = always the most probable token; higher is more varied.
        top_p: draw among the most probable tokens of this total probability.
    """

    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf or not 0 < self.top_p <= 1:
            raise ValueError(
                f"temperature {self.temperature} must be 0 or more and finite, and top_p {self.top_p} above 0 and at "
                "most 1"
            )


def generator_for(*key: object) -> "torch.Generator":
    """A random generator on the CPU that the given values alone decide."""
    import torch

    digest = hashlib.blake2b(":".join(map(str, key)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def choose(logits: "torch.Tensor", sampling: Sampling, generators: "Sequence[torch.Generator]") -> "torch.Tensor":
    """One token a row: logits (B, V) -> ids (B,), on the CPU; each row draws from its own generator.

    top_p keeps the smallest set of most probable tokens whose probability reaches it (Holtzman et al. 2020).
    """
    import torch

    scores = logits.detach().float().cpu()
    if sampling.temperature == 0:
        return scores.argmax(-1)
    least = torch.finfo(scores.dtype).tiny  # what is less is 0 in fp32, which divides nothing and keeps no token
    below_best = scores - scores.amax(-1, keepdim=True)
    probabilities, order = (below_best / max(sampling.temperature, least)).softmax(-1).sort(-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    cumulative = probabilities.masked_fill(before >= max(sampling.top_p, least), 0.0).cumsum(-1)
    draws = torch.stack([torch.rand((), generator=one) for one in generators]).unsqueeze(-1)
    places = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True).clamp_(max=scores.shape[-1] - 1)
    return order.gather(-1, places).squeeze(-1)


def decode(
    network: Any,
    rows: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    ends: Sequence[int],
    sampling: Sampling,
    seeds: Sequence[object],
) -> "Iterator[torch.Tensor]":
    """Continue rows of token ids together, a token of each at a time: yields ids (B,), for rows that ended the first
    of `ends`, at any of which a row does.

    Rows are padded on the left; padding is masked and has no positions. Ends when all rows have or at
    `max_new_tokens`. Costs one pass over the prompts, then one over a token a row.
    """
    import torch

    longest, device, end_id = max(map(len, rows)), network.device, ends[0]
    inputs = torch.tensor([[end_id] * (longest - len(row)) + list(row) for row in rows], device=device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows], device=device)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    generators, cache = [generator_for(seed) for seed in seeds], None
    ended = torch.zeros(len(rows), dtype=torch.bool)
    for _ in range(max_new_tokens):
        with torch.no_grad():
            output = network(
                input_ids=inputs,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        cache = output.past_key_values
        chosen = choose(output.logits[:, -1], sampling, generators)
        chosen[ended] = end_id
        ended |= torch.isin(chosen, torch.tensor(ends))
        yield chosen
        if ended.all():
            return
        inputs = chosen.to(device).unsqueeze(-1)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=-1)
        positions = positions[:, -1:] + 1
