"""Where the numbers of a parameter lie in the flat tensors that ZeRO makes of many: what each process holds of what.

Stages 1 and 2 lay the parameters of a group one behind the other and cut the whole into as many equal parts as there
are processes; stage 3 cuts each parameter, and lays a process's parts of a group one behind the other. Both were read
from DeepSpeed 0.19 (`stage_1_and_2.py`, `bf16_optimizer.py`, `stage3.py`).
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Fragment:
    """Numbers `start` to `start + count` of a parameter, flattened, which lie from `offset` on in a flat tensor."""

    name: str
    start: int
    count: int
    offset: int


def laid_out(sizes: Mapping[str, int], paddings: Mapping[str, int] | None = None) -> list[Fragment]:
    """Whole parameters, of `sizes` numbers each, one behind the other, each with its padding behind it."""
    fragments, offset = [], 0
    for name, count in sizes.items():
        fragments.append(Fragment(name, 0, count, offset))
        offset += count + (paddings[name] if paddings else 0)
    return fragments


def part_of_all(group: list[Fragment], size: int, rank: int) -> list[Fragment]:
    """What lies in the part of process `rank`, of `size` numbers, of a group laid out (stages 1 and 2)."""
    begin, end = size * rank, size * (rank + 1)
    return list(_within(group, begin, end))


def _within(group: list[Fragment], begin: int, end: int) -> Iterator[Fragment]:
    for whole in group:
        first, last = max(whole.offset, begin), min(whole.offset + whole.count, end)
        if first < last:
            yield Fragment(whole.name, first - whole.offset, last - first, first - begin)


def part_of_each(sizes: Mapping[str, int], world_size: int, rank: int) -> list[Fragment]:
    """The parts of process `rank` of parameters of `sizes` numbers, one behind the other (stage 3)."""
    fragments, offset = [], 0
    for name, count in sizes.items():
        size = -(-count // world_size)
        held = min(size, count - size * rank)
        if held > 0:
            fragments.append(Fragment(name, size * rank, held, offset))
        offset += size
    return fragments
