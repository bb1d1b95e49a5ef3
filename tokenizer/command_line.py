"""The one way in: a script's typed `main(*, ...)` is its command line.

Exit codes: 0 done, 1 failure, 2 usage. A fault that the user can mend (ValueError, OSError) prints one line;
anything else is a fault of ours and keeps its traceback.
"""

import dataclasses
import inspect
import logging
import sys
import typing
from collections.abc import Callable, Iterable
from typing import Any

LOG_FORMAT = "%(asctime)s %(name)s: %(message)s"


def run(main: Callable[..., Any], argv: list[str] | None = None) -> None:
    """Parse `argv` (default: the process's) against the signature of `main`, call it and exit with its code.

    `main` may return an exit code; None counts as 0.
    """
    from jsonargparse import auto_cli

    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("py4j").setLevel(logging.WARNING)
    words = expand(sys.argv[1:] if argv is None else argv, main)
    try:
        code = auto_cli(main, as_positional=False, args=words, parser_mode="yaml")
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)


def expand(words: Iterable[str], main: Callable[..., Any]) -> list[str]:
    """Let lists take several words (`--sources A B`) and booleans none (`--overwrite`), as shells expect.

    jsonargparse wants `--sources+ A --sources+ B` and `--overwrite true`, which it still gets.
    """
    hints = typing.get_type_hints(main)
    kinds = {name: hints.get(name) for name in inspect.signature(main).parameters}
    lists = {f"--{name}" for name, kind in kinds.items() if _is_list(kind)}
    flags = {f"--{name}" for name, kind in kinds.items() if kind is bool}
    for name, kind in kinds.items():
        if dataclasses.is_dataclass(kind):
            flags |= {f"--{name}.{field}" for field, hint in typing.get_type_hints(kind).items() if hint is bool}
    expanded: list[str] = []
    current: str | None = None
    for word in words:
        if word.startswith("--"):
            if current in flags:
                expanded.append("true")
            current = word
            expanded.append(f"{word}+" if word in lists else word)
            continue
        if current in lists and not expanded[-1].startswith("--"):
            expanded.append(f"{current}+")
        expanded.append(word)
        if current in flags:
            current = None
    if current in flags:
        expanded.append("true")
    return expanded


def _is_list(kind: Any) -> bool:
    """Whether a parameter's type is a list, or a list or None."""
    return any(typing.get_origin(option) is list for option in (kind, *typing.get_args(kind)))
