"""The one way in: a script's typed `main(*, ...)` is its command line, or several such functions, its subcommands.

Exit codes: 0 done, 1 failure, 2 usage. A fault that the user can mend (ValueError, OSError) prints one line;
anything else is a fault of ours and keeps its traceback.
"""

import contextlib
import dataclasses
import inspect
import io
import logging
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from typing import Any

LOG_FORMAT = "%(asctime)s %(name)s: %(message)s"


def run(main: Callable[..., Any] | list[Callable[..., Any]], argv: list[str] | None = None) -> None:
    """Parse `argv` (default: the process's) against the signature of `main`, call it and exit with its code.

    `main` may return an exit code; None counts as 0. Of several functions the first word names the one to call.
    """
    from jsonargparse import auto_cli

    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("py4j").setLevel(logging.WARNING)
    words = sys.argv[1:] if argv is None else argv
    words = _expand_one(words, main) if isinstance(main, list) else expand(words, main)
    try:
        with _told(main) if "--help" in words or "-h" in words else contextlib.nullcontext():
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


def _expand_one(words: list[str], commands: list[Callable[..., Any]]) -> list[str]:
    """What stands behind the name of a subcommand is expanded by its signature."""
    for command in commands:
        if words and words[0] == command.__name__:
            return [words[0], *expand(words[1:], command)]
    return words


@contextlib.contextmanager
def _told(main: Callable[..., Any] | list[Callable[..., Any]]) -> Iterator[None]:
    """Let help tell the docstrings, where jsonargparse without its parser of docstrings prints the functions.

    In a list of subcommands each has the first line of its own; the help of one is all of it.
    """
    commands = {command.__name__: command for command in (main if isinstance(main, list) else [main])}

    def doc(match: re.Match[str]) -> str:
        text = inspect.getdoc(commands[match[2]]) or ""
        return match[1] + (text.partition("\n")[0] if match[1] else text)

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        names = "|".join(commands)
        sys.stdout.write(re.sub(rf"(.*)<function ({names})\s+at\s+\w+>", doc, printed.getvalue()))


def _is_list(kind: Any) -> bool:
    """Whether a parameter's type is a list, or a list or None."""
    return any(typing.get_origin(option) is list for option in (kind, *typing.get_args(kind)))
