"""A micro-batch on its way to the device: in the types of the shards, in page-locked memory, and laid out there.

Tokens are copied once, from the memory map to where the device fetches them, in the two bytes that they have in the
shards (four, of a large vocabulary); to widen them, and to cut inputs and labels out of them, is the device's work.
"""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

    Inputs = dict[str, torch.Tensor]

Arrays = dict[str, NDArray[Any]]
Samples = NDArray[np.uint64]
IGNORED = -100  # a label that is none; as in losses.py, which imports torch
ROWS, BORDERS = "rows", "document_borders"
DOCUMENTS, DECODER_DOCUMENTS = "documents", "decoder_documents"


@dataclass(frozen=True)
class MicroBatch:
    """Sequences that a device takes at once.

    `tensors` are `rows` (B, T + 1), all of whose tokens but the last are inputs and all but the first labels, or
    `input_ids` and `labels` of their own; beside them further arguments of the model, and for models that read both
    ways `documents` (B, T), the number of each token's, of which the device makes a mask; with `decoder_documents`, of
    the tokens that a decoder writes, it makes the masks of that too. `label_count` of the labels are not IGNORED.
    `samples` are source and window (n, 2) of each sequence that was read. If `is_flat`, sequences are laid end to end
    in one row, and `document_borders` tell where documents begin in it: what the kernels for sequences of many lengths
    take (attention.py).
    """

    tensors: "Inputs"
    label_count: int
    samples: Samples | None = None
    is_flat: bool = False

    @classmethod
    def of(
        cls,
        arrays: Arrays,
        *,
        flatten: bool = False,
        room: "torch.Tensor | None" = None,
        samples: Samples | None = None,
    ) -> "MicroBatch":
        """What an objective made (objectives.py), in page-locked memory where there is a GPU.

        Args:
            arrays: as an objective returns them.
            flatten: lay sequences that have positions end to end.
            room: page-locked memory that `rows` may lie in already; then it is not copied.
            samples: what was read.
        """
        flatten = flatten and "position_ids" in arrays
        found = {name: _pinned(array, room) for name, array in arrays.items()}
        if flatten:
            found[BORDERS] = _pinned(document_borders(arrays["position_ids"]))
        rows = arrays.get(ROWS)
        count = int((arrays["labels"] != IGNORED).sum()) if rows is None else len(rows) * (rows.shape[1] - 1)
        return cls(found, count, samples, flatten)

    def on(self, device: "torch.device | str") -> "Inputs":
        """`input_ids`, `labels` and all else on a device, of int64, masks of bool.

        What copies page-locked memory waits for nothing; torch reuses that memory when a copy is done.
        """
        there = {name: tensor.to(device, non_blocking=True) for name, tensor in self.tensors.items()}
        borders = {name: there.pop(name) for name in (BORDERS,) if name in there}
        there = {name: tensor.long() for name, tensor in there.items()}
        rows = there.pop(ROWS, None)
        documents, written = (there.pop(name, None) for name in (DOCUMENTS, DECODER_DOCUMENTS))
        if documents is not None:
            there["attention_mask"] = same_document(documents, documents)
        if documents is not None and written is not None:
            there["decoder_attention_mask"] = same_document(written, written).tril()
            there["cross_attention_mask"] = same_document(written, documents)
        if rows is not None:
            there = {"input_ids": rows[:, :-1].contiguous(), "labels": rows[:, 1:].contiguous()} | there
        if self.is_flat:
            there = {name: tensor.reshape(1, -1) for name, tensor in there.items()}
        return there | borders


def same_document(ours: "torch.Tensor", seen: "torch.Tensor") -> "torch.Tensor":
    """The mask (B, 1, T, S) by which each token (B, T) sees those (B, S) of its document: True where both numbers are
    equal."""
    return (ours.unsqueeze(2) == seen.unsqueeze(1)).unsqueeze(1)


def room_for(rows: int, tokens: int, dtype: Any) -> "torch.Tensor":
    """Memory (rows, tokens) of a type of numpy's, page-locked where there is a GPU."""
    import torch

    return torch.empty((rows, tokens), dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=_has_gpu())


def _pinned(array: NDArray[Any], room: "torch.Tensor | None" = None) -> "torch.Tensor":
    if room is not None and array.ctypes.data == room.data_ptr() and array.shape == room.shape:
        return room
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory() if _has_gpu() else tensor


def document_borders(positions: NDArray[Any]) -> NDArray[np.int32]:
    """Where documents begin in rows of positions laid end to end, and where the last ends.

    The end is repeated, as documents of no tokens, up to a power of two: so that there are few different shapes, for
    each of which a model is compiled.
    """
    begins = np.flatnonzero(positions == 0)
    borders = np.full(max(64, 1 << len(begins).bit_length()), positions.size, np.int32)
    borders[: len(begins)] = begins
    return borders


@cache
def _has_gpu() -> bool:
    """Asked once: torch looks at the machine each time."""
    import torch

    return torch.cuda.is_available()
