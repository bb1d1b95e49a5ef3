"""Whether checkpoints are as they were written: what one process finds at fault, another looks at again.

File systems that machines share may show each of them an older state, for up to 60 s by NFS's default; and it may be a
machine, and not the disk, that reads wrongly.
"""

import contextlib
import functools
import itertools
import json
import logging
import time
from pathlib import Path

from training.durable import FileRecord, damaged, seen
from training.marker import MARKER, Checkpoint, read_marker
from training.processes import Processes

DAMAGED = ".damaged"
AGAIN_SECONDS = 3.0  # after which another process looks at a fault again
log = logging.getLogger("train")


def newest_sound(folder: Path, names: list[str], processes: Processes) -> Checkpoint | None:
    """The newest checkpoint whose files are as they were written, None if there is none; every process must call.

    Each process reads its share of the files, which are in memory then for loading. Newer checkpoints, which are
    damaged, are told of and set aside under another name.

    Raises:
        ValueError: on all processes, if all are damaged; they stay as they are.
    """
    names, faulty = processes.from_first(names), dict[str, str]()
    while names:
        name = names.pop()
        fault = _fault(folder / name, processes)
        if fault is None:
            if processes.is_first:
                _set_aside(folder, faulty, name)
            return processes.from_first(read_marker(folder / name / MARKER))  # type: ignore[no-any-return]
        faulty[name] = fault
    if faulty:
        name, fault = next(iter(faulty.items()))
        raise ValueError(
            f"{folder / name}: {fault}, and there is no other that is sound; put the file back, or begin anew with "
            "--overwrite"
        )
    return None


def _fault(folder: Path, processes: Processes) -> str | None:
    """What is wrong with a checkpoint, as two processes see it, on machines of their own where there are any."""
    faults = _faults(folder, processes)
    if not faults:
        return None
    time.sleep(AGAIN_SECONDS)
    if again := _faults(folder, processes, again=faults):
        return " ".join(next(iter(again.items())))
    if processes.is_first:
        log.warning("%s: %s at first, and is whole now", folder.name, " ".join(next(iter(faults.items()))))
    return None


def _faults(folder: Path, processes: Processes, again: dict[str, str] | None = None) -> dict[str, str]:
    """Damaged files and what is wrong with each; those of `again` are read by another process than before."""
    mine = processes.rank
    if again is not None:
        mine += max(1, processes.world_size // 2)
    try:
        files: dict[str, FileRecord] = json.loads((folder / MARKER).read_text()).get("files", {})
        names = sorted(files)[mine % processes.world_size :: processes.world_size]
        read = {file: files[file] for file in names if again is None or MARKER in again or file in again}
        found = dict(damaged(folder, read, quiet=not processes.is_first))
    except (OSError, ValueError, AttributeError) as error:
        found = {MARKER: f"cannot be read ({error})"}
    if processes.is_first and read_marker(folder / MARKER) is None:
        found = {MARKER: "cannot be read"}
    return {file: fault for share in processes.gathered(found) for file, fault in share.items()}


def _set_aside(folder: Path, faulty: dict[str, str], sound: str) -> None:
    """Give damaged checkpoints a name under which they do not count, and stay."""
    for name, fault in faulty.items():
        names = (f"{name}{DAMAGED}-{number}" for number in itertools.count(1))
        aside = next(other for other in names if not (folder / other).exists())
        (folder / name).rename(folder / aside)
        log.warning("%s is damaged: %s; going on from %s, and keeping it as %s", name, fault, sound, aside)


def unseen(folder: Path, files: dict[str, FileRecord]) -> str | None:
    """A file of a folder that is not there as the process that wrote it says, however long it is waited for."""
    for name, record in files.items():
        if not seen(functools.partial(_has_size, folder / name, int(record["bytes"]))):
            return name
    return None


def _has_size(path: Path, size: int) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_size == size
    return False
