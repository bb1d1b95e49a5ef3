"""One run a folder at a time: a lock that the first process holds, and that the system releases when it ends."""

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from training.durable import seen
from training.processes import Processes
from training.stopping import StopRequest

LOCK = ".lock"
# A machine that died keeps its locks on a shared file system until its lease ends, 90 s by NFS's default.
WAIT_SECONDS, LOOK_SECONDS, AGAIN_SECONDS = 120.0, 2.0, 0.2
Holder = dict[str, str | int]
log = logging.getLogger("train")


@contextlib.contextmanager
def held(folder: Path, processes: Processes, stop: StopRequest) -> Iterator[bool]:
    """The lock of a run's folder, made if need be, and gone if nothing else came into it; every process must call.

    Yields whether it is held: not if the wait for another run to end was to be stopped.

    Raises:
        ValueError: on all processes, if another run goes on writing there, the folder cannot be made, or it is not
            the same one on all machines.
    """
    file, fault = _acquired(folder, stop) if processes.is_first else (None, None)
    fault, stopped, holder = processes.from_first((fault, stop.came, _process(os.getpid())))
    try:
        if fault is not None and not stopped:
            raise ValueError(fault)
        # Not by the first, which would let go of its lock as it closed the file.
        if fault is None and not all(seen := processes.gathered(processes.is_first or _is_seen(folder, holder))):
            raise ValueError(
                f"process {seen.index(False)} does not see what process 0 writes to {folder}; choose an --output that "
                "all machines share"
            )
        yield fault is None
    finally:
        if file is not None:
            with contextlib.suppress(OSError):
                if [entry.name for entry in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    folder.rmdir()
            file.close()


def _acquired(folder: Path, stop: StopRequest) -> tuple[IO[str] | None, str | None]:
    """The lock file, locked and signed; or why there is none, if another run goes on holding it."""
    deadline, told = time.monotonic() + WAIT_SECONDS, False
    try:
        while True:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / LOCK).open("a+")
            if _locked(file, folder):
                if _is_the_one(file, folder / LOCK):
                    _sign(file)
                    return file, None
                file.close()  # its holder ended, and took it away, between our opening and locking it
                if time.monotonic() > deadline:
                    return None, f"{folder / LOCK} is another file each time it is looked at; choose another --output"
                time.sleep(AGAIN_SECONDS)
                continue
            holder = _holder(file)
            file.close()
            if (holder and holder == _process(int(holder["process"]))) or time.monotonic() > deadline or stop.came:
                who = f"process {holder['process']} on {holder['machine']}" if holder else "another run"
                return None, f"{folder} is being written by {who}; wait for it, or choose another --output"
            if not told:
                log.info("%s is held by a run on another machine: waiting %.0f s for its end", folder, WAIT_SECONDS)
                told = True
            time.sleep(LOOK_SECONDS)
    except OSError as error:
        return None, f"{folder} cannot be written to: {error}; choose another --output"


def _locked(file: IO[str], folder: Path) -> bool:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which children do not inherit, as they would flock
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        log.warning("the file system of %s knows no locks (%s): see that one run writes there", folder, error.strerror)
    return True


def _is_the_one(file: IO[str], path: Path) -> bool:
    """Whether an open file is still the one of that name."""
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _is_seen(folder: Path, holder: Holder) -> bool:
    """Whether the lock is here, as the process wrote it that holds it."""

    def is_there() -> bool:
        with contextlib.suppress(OSError), (folder / LOCK).open() as file:
            return _holder(file) == holder
        return False

    return seen(is_there)


def _sign(file: IO[str]) -> None:
    file.seek(0)
    file.truncate()
    json.dump(_process(os.getpid()), file)
    file.flush()


def _holder(file: IO[str]) -> Holder:
    """What the holder of the lock says of itself; nothing if it has not yet."""
    file.seek(0)
    with contextlib.suppress(ValueError):
        found: Holder = json.load(file)
        return found
    return {}


def _process(number: int) -> Holder:
    """A process of this machine, as no other is or was: numbers come again, at the latest after a start of it."""
    started = ""
    with contextlib.suppress(OSError):
        started = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[19]
        started += Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return {"machine": socket.gethostname(), "process": number, "started": started}
