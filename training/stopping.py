"""Being asked to stop: by a signal to any process, or by the end of the launcher that started this one.

`deepspeed` is two processes, the runner and launch.py, above the workers. On one node neither the runner nor, for
SIGUSR1, launch.py passes a signal on: it dies and leaves the workers behind. So each worker looks whether those above
live, and takes the end of one for a request. launch.py answers SIGTERM by ending the workers one after the other, 30
seconds apart; so one request is enough, and the loop spreads it with the sums of each step.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

STOPPED = 75  # exit code of a run that saved because it was asked to stop: try again (EX_TEMPFAIL), it goes on
LOOK_SECONDS = 0.5
ORPHAN_SECONDS = 1800.0  # a step and a checkpoint take less; what hangs longer without a launcher is ended


class StopRequest:
    """Whether this process was asked to stop: SIGTERM, SIGUSR1, SIGINT, or the end of its launcher.

    A second SIGINT (Ctrl-C) ends the process at once; other signals may come as often as they like while it saves.
    """

    def __init__(self) -> None:
        self.came = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._note)
        sys.stdout, sys.stderr = _Unbroken(sys.stdout), _Unbroken(sys.stderr)
        self._launchers = launchers()
        if self._launchers:
            threading.Thread(target=self._watch, daemon=True).start()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _watch(self) -> None:
        while all(_parent(child) == parent for child, parent in self._launchers):
            time.sleep(LOOK_SECONDS)
        self.came = True
        time.sleep(ORPHAN_SECONDS)
        os._exit(STOPPED)


def launchers() -> list[tuple[int, int]]:
    """(child, parent) for each launcher above this process, nearest first: launch.py or torchrun, then the runner."""
    found, child = [], os.getpid()
    while (parent := _parent(child)) and _is_launcher(parent):
        found.append((child, parent))
        child = parent
    return found


def _is_launcher(process: int) -> bool:
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return False
    names = {Path(word).name for word in (words[:4] if "python" in words[0] else words[:1])}
    return bool(names & {"deepspeed", "ds", "torchrun", "deepspeed.launcher.launch", "torch.distributed.run"})


def _parent(process: int) -> int:
    """Process that started another; 0 if there is none to be seen."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


class _Unbroken:
    """A stream whose reader may go: what is written then goes nowhere, instead of ending the run that has to save."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return int(self._stream.write(text))
        except BrokenPipeError:
            self._abandon()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._abandon()

    def _abandon(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
