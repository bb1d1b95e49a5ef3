"""A checkpoint's weights and optimizer states by parameter, whatever ZeRO stage and however many processes wrote it.

DeepSpeed's files hold one flat tensor for each process, group of parameters and kind of state. They are mapped, not
read: a process that goes on from a checkpoint, in whichever layout, copies what it needs out of all of them, once.
Nothing is converted, and nothing is written.
"""

import mmap
import os
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.progress import Progress
from training.fragments import Fragment, laid_out, part_of_all, part_of_each

if TYPE_CHECKING:
    import torch

NAMES = "parameter_names"  # what a checkpoint of stage 0 says beside DeepSpeed's files: in the optimizer's order
WEIGHTS, MOMENTUM = "fp32", "momentum_buffer"  # kinds of state: weights, of AdamW and Muon, and Muon's own


@dataclass(frozen=True, slots=True)
class _Piece:
    """Numbers of a parameter from `start` on: `count` from `offset` on in a flat tensor for each kind of state."""

    start: int
    count: int
    offset: int
    flats: dict[str, "torch.Tensor"]


class SavedParameters:
    """What a checkpoint holds, by the parameters' names.

    Args:
        folder: of one complete checkpoint.
        stage: ZeRO stage of its files.
        world_size: processes that wrote it.

    Attributes:
        shapes: of the parameters that are trained.
        buffers: what the model keeps beside its parameters, by name.
        taken: optimizer steps that were not skipped; None before the first.
        scaler: the state of the loss scale (fp16), or None.
        counters: DeepSpeed's counts of steps and samples.
        progress: is told of the bytes that `fill` reads.

    Raises:
        OSError, KeyError, RuntimeError: files are missing, or are not what DeepSpeed 0.19 writes.
    """

    def __init__(self, folder: Path, stage: int, world_size: int) -> None:
        self._models = [folder / "mp_rank_00_model_states.pt"]
        if stage == 3:
            self._models = [folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt" for rank in range(world_size)]
        state = _mapped(self._models[0])
        self._pieces: defaultdict[str, list[_Piece]] = defaultdict(list)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.buffers = {name: state["module"][name] for name in state["buffer_names"] if name in state["module"]}
        self.counters = {name: state[name] for name in ("global_steps", "global_samples", "skipped_steps")}
        self.scaler: dict[str, Any] | None = None
        self.progress: Progress | None = None
        self._steps: list[float] = []
        if stage == 0:
            self._take_whole(state)
            return
        groups = state["param_shapes"]
        self.shapes = {name: tuple(shape) for group in groups for name, shape in group.items()}
        sizes = [{name: prod(shape) for name, shape in group.items()} for group in groups]
        parts = [_mapped(_of_process(folder, rank))["optimizer_state_dict"] for rank in range(world_size)]
        if "loss_scaler" in parts[0]:
            self.scaler = {name: parts[0][name] for name in ("loss_scaler", "dynamic_loss_scale")}
        if stage == 3:
            self._take_parts_of_each(sizes, parts)
        else:
            self._take_parts_of_all(sizes, parts)

    @property
    def taken(self) -> float | None:
        return max(self._steps, default=None)

    def size_bytes(self, kind: str | None = None) -> int:
        """Bytes of one kind of state, or of all."""
        pieces = [piece for found in self._pieces.values() for piece in found]
        sizes = [(piece.count * flat.element_size(), name) for piece in pieces for name, flat in piece.flats.items()]
        return sum(size for size, name in sizes if kind in (None, name))

    def kinds(self, names: Iterable[str]) -> list[str]:
        """The kinds of state that parameters have, sorted."""
        return sorted({kind for name in names for piece in self._pieces[name] for kind in piece.flats})

    def fill(self, flat: "torch.Tensor", fragments: Iterable[Fragment], kind: str) -> "torch.Tensor":
        """`flat` with the fragments of one kind in it; KeyError names a parameter that is not wholly there."""
        for one in fragments:
            found = 0
            for piece in self._pieces[one.name]:
                first, last = max(piece.start, one.start), min(piece.start + piece.count, one.start + one.count)
                if first < last and kind in piece.flats:
                    source = piece.flats[kind].narrow(0, piece.offset + first - piece.start, last - first)
                    flat.narrow(0, one.offset + first - one.start, last - first).copy_(source)
                    found += last - first
                    if self.progress is not None:
                        self.progress.add(source.nbytes)
            if found != one.count:
                raise KeyError(f"{found:,} of {one.count:,} numbers of {kind} of {one.name} are there")
        return flat

    def weights(self) -> dict[str, "torch.Tensor"]:
        """All weights of a checkpoint of stage 3 in fp32, whole, with those never trained, and the buffers."""
        import torch

        whole = self._frozen()
        self.progress = Progress("reading weights", self.size_bytes(WEIGHTS), gigabytes=True)
        for name, shape in self.shapes.items():
            fragments = laid_out({name: prod(shape)})
            whole[name] = self.fill(torch.empty(prod(shape)), fragments, WEIGHTS).view(shape)
        self.progress.end()
        return whole | self.buffers

    def _frozen(self) -> dict[str, "torch.Tensor"]:
        """Weights that a model has and no optimizer (`requires_grad` is false), which stage 3 cuts like others."""
        import torch

        first = _mapped(self._models[0])
        shapes = first.get("frozen_param_shapes") or {}
        if not shapes:
            return {}
        parts = [_mapped(path)["frozen_param_fragments"] for path in self._models]
        return {
            name: torch.cat([part[name].reshape(-1) for part in parts])[: prod(shape)].view(shape)
            for name, shape in shapes.items()
        }

    def _take_whole(self, state: dict[str, Any]) -> None:
        """Stage 0: whole tensors."""
        moments = state["optimizer"]["state"]
        for number, name in enumerate(state[NAMES]):
            weights = state["module"][name]
            self.shapes[name] = tuple(weights.shape)
            flats = {WEIGHTS: weights.reshape(-1)} | self._moments(moments.get(number, {}))
            self._pieces[name].append(_Piece(0, weights.numel(), 0, flats))

    def _take_parts_of_all(self, sizes: list[dict[str, int]], parts: list[dict[str, Any]]) -> None:
        """Stages 1 and 2: equal parts of all parameters of a group, one behind the other."""
        for number, group in enumerate(sizes):
            aligned = parts[0].get("param_alignment_paddings")
            paddings = dict(zip(group, aligned[number], strict=True)) if aligned else None
            weights = [part["single_partition_of_fp32_groups"][number] for part in parts]
            moments = [self._moments(part["base_optimizer_state"]["state"].get(number, {})) for part in parts]
            # All parts are as long as the first; the last comes without its padding.
            places = laid_out(group, paddings)
            held = [part_of_all(places, len(weights[0]), rank) for rank in range(len(parts))]
            wholes = [laid_out({one.name: group[one.name] for one in fragments}) for fragments in held]
            if _are_whole([one.get(MOMENTUM) for one in moments], wholes):
                told: set[str] = set()  # a matrix that the processes' borders cut is with each that has some of it
                for fragments, one in zip(wholes, moments, strict=True):
                    flats = {MOMENTUM: one.pop(MOMENTUM)} if fragments else {}
                    self._add([fragment for fragment in fragments if fragment.name not in told], flats)
                    told |= {fragment.name for fragment in fragments}
            for fragments, flat, one in zip(held, weights, moments, strict=True):
                self._add(fragments, {WEIGHTS: flat} | one)

    def _take_parts_of_each(self, sizes: list[dict[str, int]], parts: list[dict[str, Any]]) -> None:
        """Stage 3: a part of each parameter, those of a group one behind the other."""
        for rank, part in enumerate(parts):
            states = part["optimizer_state_dict"]["state"]
            for number, group in enumerate(sizes):
                flats = {WEIGHTS: part["fp32_flat_groups"][number]} | self._moments(states.get(number, {}))
                self._add(part_of_each(group, len(parts), rank), flats)

    def _moments(self, state: dict[str, Any]) -> dict[str, "torch.Tensor"]:
        """The tensors of one optimizer state, flat, less its count of steps, which is noted."""
        import torch

        if "step" in state:
            self._steps.append(float(state["step"]))
        return {kind: value.reshape(-1) for kind, value in state.items() if kind != "step" and torch.is_tensor(value)}

    def _add(self, fragments: list[Fragment], flats: dict[str, "torch.Tensor"]) -> None:
        for one in fragments:
            self._pieces[one.name].append(_Piece(one.start, one.count, one.offset, flats))


def _are_whole(momenta: list["torch.Tensor | None"], wholes: list[list[Fragment]]) -> bool:
    """Whether Muon's momenta are of whole matrices, of all that touch a process's part, one behind the other.

    DeepSpeed keeps them so at stages 1 and 2 unless they are offloaded, or the weights are bf16 at stage 1. Where
    parts of both forms are as long, their borders are those of matrices, and they are the same.
    """
    lengths = [fragments[-1].offset + fragments[-1].count if fragments else 0 for fragments in wholes]
    found = [len(momentum) if momentum is not None else 0 for momentum in momenta]
    return any(found) and found == lengths


def _of_process(folder: Path, rank: int) -> Path:
    found = [folder / f"{kind}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt" for kind in ("", "bf16_")]
    return next((path for path in found if path.is_file()), found[0])


def _mapped(path: Path) -> Any:
    """A file whose tensors are on the disk until they are read, and not to be written to.

    Shared, since of files beyond the memory no private map is made; that asks for the right to write to the file.
    """
    import torch
    from torch.serialization import set_default_mmap_options

    shared = mmap.MAP_SHARED if os.access(path, os.W_OK) else mmap.MAP_PRIVATE
    with set_default_mmap_options(shared):
        return torch.load(path, map_location="cpu", weights_only=False, mmap=True)
