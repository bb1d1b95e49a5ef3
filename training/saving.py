"""One checkpoint on its way to the disk: what DeepSpeed hands over is copied, and written while training goes on.

DeepSpeed's own asynchronous writers (0.19.8) are of no use here: they start under its launcher alone, want libaio and
a compiler, or share the tensors with another process so that the next update waits for it, flush nothing, and load
with `torch.load`'s defaults, which refuse its own optimizer files. So DeepSpeed gathers the state as it always does,
its engine of checkpoints is this one, and a thread writes copies, with DeepSpeed's usual engine and in its format.
"""

import copy
import logging
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizer.shard_index import flush
from training import nvme_checkpoint
from training.durable import FileRecord, describe

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

LEAST_FREE_BYTES = 1 << 20
log = logging.getLogger("train")


class Saving:
    """A checkpoint that is being written by this process.

    Costs the memory of what this process saves (12 bytes a parameter, divided by the processes that share it) until it
    is written, and one copy of it before training goes on; not in the background, all the writing.

    Args:
        engine: DeepSpeed's, whose state is saved as it is now.
        folder, tag: where to.
        state: what the files say beside DeepSpeed's state.
        in_background: write in a thread; not where states of the optimizer wait on a disk, and change there.

    `files` and `fault` are whole when `written` is true: a fault is kept until all processes can hear of it, since
    within DeepSpeed's saving they wait for each other, and one that raised would leave the others waiting.
    """

    def __init__(
        self, engine: "DeepSpeedEngine", folder: Path, tag: str, state: dict[str, Any], in_background: bool
    ) -> None:
        self.files: dict[str, FileRecord] = {}
        self.fault: str | None = None
        self._held: list[tuple[Any, Path]] = []
        self._in_background = in_background and not nvme_checkpoint.has_optimizer_on_disk(engine)
        self._writer = engine.checkpoint_engine
        engine.checkpoint_engine = self
        engine._copy_recovery_script = lambda *_: (
            None
        )  # export.py is there for that; a full disk would leave others waiting
        try:
            with nvme_checkpoint.mapped(engine):
                engine.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=False)
        finally:
            engine.checkpoint_engine = self._writer
        self._thread = threading.Thread(target=self._write_held, daemon=True)
        self._thread.start()

    @property
    def written(self) -> bool:
        """Whether all that can be written is on the disk."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Return when it is."""
        self._thread.join()

    def save(self, state_dict: Any, path: str) -> None:
        """What DeepSpeed calls for each file."""
        if self._in_background:
            self._held.append((_copied(state_dict, {}), Path(path)))
        else:
            self._write(state_dict, Path(path))

    def _write_held(self) -> None:
        while self._held:
            self._write(*self._held.pop(0))

    def _write(self, state: Any, path: Path) -> None:
        try:
            self._writer.save(state, str(path))
            flush(path)
            self.files[path.name] = describe(path)
        except Exception as error:  # torch makes a RuntimeError of some faults of the disk, and names none
            full = "; the disk is full" if shutil.disk_usage(path.parent).free < LEAST_FREE_BYTES else ""
            self.fault = (" ".join(str(error).split()) or repr(error)) + full

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)


def _copied(value: Any, seen: dict[Any, Any]) -> Any:
    """A nested state with its tensors copied to the CPU; those that are the same memory stay the same."""
    import torch

    if isinstance(value, torch.Tensor):
        key = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
        if value.numel() == 0 or key not in seen:
            seen[key] = value.detach().to("cpu", copy=True)
        return seen[key]
    if isinstance(value, dict):
        made = value.copy()
        for name in made:
            made[name] = _copied(made[name], seen)
        return made
    if isinstance(value, list):
        return [_copied(entry, seen) for entry in value]
    if type(value) is tuple:
        return tuple(_copied(entry, seen) for entry in value)
    return copy.copy(value)  # a loss scale's state goes on changing
