"""The one way in: a script's typed `main(*, ...)` is its command line, or several such functions, its subcommands.

Exit codes: 0 done, 1 failure, 2 usage. A fault that the user can mend (ValueError, OSError) prints one line;
anything else is a fault of ours and keeps its traceback.
"""

import contextlib
import dataclasses
import functools
import inspect
import io
import json
import logging
import os
import re
import select
import sys
import typing
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

READER_IS_GONE = 128 + 13  # as shells tell of SIGPIPE
LOG_FORMAT = "%(asctime)s %(name)s: %(message)s"
ARGUMENTS = re.compile(r"^Args:\n(?: .*\n?|\n)*", re.MULTILINE)


def run(main: Callable[..., Any] | list[Callable[..., Any]], argv: list[str] | None = None) -> None:
    """Parse `argv` (default: the process's) against the signature of `main`, call it and exit with its code.

    `main` may return an exit code; None counts as 0. Of several functions the first word names the one to call.
    """
    from jsonargparse import auto_cli

    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, datefmt="%H:%M:%S", stream=sys.stderr)
    logging.getLogger("py4j").setLevel(logging.WARNING)
    words = sys.argv[1:] if argv is None else argv
    command = _chosen(words, main) if isinstance(main, list) else main
    if command is not None:
        _take_for_texts(_texts(words, command))
        words = [*words[:1], *expand(words[1:], command)] if isinstance(main, list) else expand(words, command)
    try:
        try:
            with _told(main) if "--help" in words or "-h" in words else contextlib.nullcontext():
                code = auto_cli(
                    main, as_positional=False, args=words, parser_class=_parser_class(), parser_mode="yaml"
                )
        finally:
            sys.stdout.flush()
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            sys.exit(READER_IS_GONE)
        told = _not_utf8(error, words) if isinstance(error, UnicodeDecodeError) else str(error)
        print(f"error: {' '.join(told.split())}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(code or 0)


def _reader_is_gone() -> bool:
    """Whether what reads the output ended (`| head`); what was not written yet is dropped then."""
    poll = select.poll()
    poll.register(sys.stdout, 0)  # 0: tell of faults alone
    is_gone = any(event & select.POLLERR for _, event in poll.poll(0))
    if is_gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return is_gone


def _not_utf8(error: UnicodeDecodeError, words: list[str]) -> str:
    """The fault with the name of the file, if the command line has it."""
    paths = [Path(word.partition("=")[2] or word) for word in words]
    files = [path for path in paths if path.is_file() and path.read_bytes().startswith(error.object)]
    return f"{files[0] if files else 'a file'} is not UTF-8: {error.reason} at byte {error.start:,}; convert it"


def expand(words: Iterable[str], main: Callable[..., Any]) -> list[str]:
    """Let lists take several words (`--sources A B`) and booleans none (`--overwrite`), as shells expect.

    Words of a list of texts are those texts, whatever YAML would make of them. jsonargparse wants `--sources+ A
    --sources+ B`, of settings in a group `--group.names [A, B]`, and `--overwrite true`, which it still gets.
    """
    kinds = _kinds(main)
    return [part for option in _merged(_options(words), kinds) for part in _expanded(option, kinds)]


def _options(words: Iterable[str]) -> Iterator[list[str]]:
    """Each option with the words behind it; before the first option, words alone."""
    current: list[str] = []
    for word in words:
        if word.startswith("--") and current:
            yield current
            current = []
        current.append(word)
    if current:
        yield current


def _split(option: list[str]) -> tuple[str, list[str]]:
    """The name of an option, and all that is given for it, behind its `=` and as words."""
    name, equals, value = option[0].partition("=")
    return name, [value] * bool(equals) + option[1:]


def _merged(options: Iterable[list[str]], kinds: dict[str, Any]) -> list[list[str]]:
    """The options, those of one list of a group together: all its words are one value."""
    merged: list[list[str]] = []
    places: dict[str, list[str]] = {}
    for option in options:
        name, values = _split(option)
        if "." in name and values and _is_list(kinds.get(name)):
            if name in places:
                places[name] += values
                continue
            option = places[name] = [name, *values]
        merged.append(option)
    return merged


def _expanded(option: list[str], kinds: dict[str, Any]) -> list[str]:
    name, values = _split(option)
    kind = kinds.get(name)
    if kind is bool and not values:
        return [name, "true"]
    if not values or not _is_list(kind):
        return option
    if "." in name and len(values) == 1 and _is_json_list(values[0]):
        return [name, *values]
    given = [_literal(one) if _is_list(kind, str) else one for one in values]
    if "." in name:
        return [name, f"[{', '.join(given)}]"]
    return [part for one in given for part in (f"{name}+", f"[{one}]" if _is_list(kind, str) else one)]


def _kinds(main: Callable[..., Any]) -> dict[str, Any]:
    """The type of each option, those of settings in a dataclass included: `--name` and `--name.field`."""
    hints = typing.get_type_hints(main)
    kinds = {f"--{name}": hints.get(name) for name in inspect.signature(main).parameters}
    for name, kind in list(kinds.items()):
        if dataclasses.is_dataclass(kind):
            kinds |= {f"{name}.{field}": hint for field, hint in typing.get_type_hints(kind).items()}
    return kinds


def _texts(words: list[str], main: Callable[..., Any]) -> set[str]:
    """The words that are given for an optional text."""
    kinds = _kinds(main)
    options = (_split(option) for option in _options(words))
    return {value for name, values in options if kinds.get(name) == str | None for value in values}


def _chosen(words: list[str], commands: list[Callable[..., Any]]) -> Callable[..., Any] | None:
    """The subcommand that the first word names."""
    return next((command for command in commands if words[:1] == [command.__name__]), None)


def _parser_class() -> "type[ArgumentParser]":
    """A parser whose help takes the options from docstrings, and whose errors are three lines."""
    from jsonargparse import ArgumentParser

    class Parser(ArgumentParser):
        def add_function_arguments(self, function: Callable[..., Any], *others: Any, **named: Any) -> list[str]:
            added = super().add_function_arguments(function, *others, **named)
            descriptions = _descriptions(function)
            for action in self._actions:
                action.help = descriptions.get(action.dest, action.help)
            kinds = typing.get_type_hints(function)
            for name, group in (self.groups or {}).items():
                if name in kinds:
                    group.title = (inspect.getdoc(kinds[name]) or name).partition("\n")[0].removesuffix(".")
            return added

        def print_usage(self, file: Any = None) -> None:
            print(f"usage: {self.prog.replace(' [options]', '')} [options]", file=file)

        def error(self, message: str, ex: Exception | None = None) -> NoReturn:
            super().error(_in_a_line(message), ex)

    return Parser


def _in_a_line(message: str) -> str:
    """An error of jsonargparse as one line, without the trials that it lists for a union of types."""
    line = " ".join(message.split()).replace("<class 'NoneType'>", "null")
    unexpected, found, content = line.partition("Unexpected config:")
    if found:
        state = f"begins with {content.strip()[:40]!r}" if content else "is empty"
        line = f"{unexpected}a file of settings has lines as `name: value`, and this one {state}"
    line = re.sub(r"(?:\ba )?<class '([\w.]+)'>|\ba typing\.", r"\1", line)
    union = r"Does not validate .* Subtypes: \[(.*)\] Errors: .* Given value: "
    return re.sub(union, r"Expected one of \1. Got value: ", line)


def _descriptions(component: Any, prefix: str = "") -> dict[str, str]:
    """What the docstring of a function or dataclass, and those of the dataclasses in it, say of each option."""
    section = ARGUMENTS.search(inspect.getdoc(component) or "")
    found: dict[str, str] = {}
    for names, text in re.findall(r"^    (\w[\w, ]*):(.*(?:\n     .*)*)", section[0] if section else "", re.MULTILINE):
        found |= {prefix + name: " ".join(text.split()) for name in names.split(", ")}
    for name, kind in typing.get_type_hints(component).items():
        if dataclasses.is_dataclass(kind):
            found[prefix + name] = f"{found.get(prefix + name, '')} CONFIG: a file of these settings.".strip()
            found |= _descriptions(kind, f"{prefix}{name}.")
    return found


@contextlib.contextmanager
def _told(main: Callable[..., Any] | list[Callable[..., Any]]) -> Iterator[None]:
    """Let help tell the docstrings, where jsonargparse without its parser of docstrings prints the functions.

    In a list of subcommands each has the first line of its own; the help of one is all of it but its arguments,
    which stand with the options.
    """
    commands = {command.__name__: command for command in (main if isinstance(main, list) else [main])}

    def doc(match: re.Match[str]) -> str:
        text = ARGUMENTS.sub("", inspect.getdoc(commands[match[2]]) or "").strip()
        return match[1] + (text.partition("\n")[0] if match[1] else text)

    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        names = "|".join(commands)
        sys.stdout.write(re.sub(rf"(.*)<function ({names})\s+at\s+\w+>", doc, printed.getvalue()))


def _literal(word: str) -> str:
    """A word as a text in YAML; one that is no UTF-8 as it is, which the parser refuses in a line."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return word
    # As JSON, but JSON's pairs for what lies beyond 16 bits are two characters to YAML.
    parts = (f"\\U{ord(one):08x}" if ord(one) > 0xFFFF else json.dumps(one)[1:-1] for one in word)
    return f'"{"".join(parts)}"'


def _is_json_list(text: str) -> bool:
    """Whether a word is a list as it stands in files of settings."""
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


def _is_list(kind: Any, of: Any = None) -> bool:
    """Whether a parameter's type is a list or tuple, or one or None; of one type of elements, if that is given."""
    options = [option for option in (kind, *typing.get_args(kind)) if typing.get_origin(option) in (list, tuple)]
    return any(of in (None, *typing.get_args(option)) for option in options)


def _take_for_texts(texts: set[str]) -> None:
    """Let what would be nothing to YAML be a text like any other: a comment in a line of code, `null` of `texts`."""
    from jsonargparse import set_loader
    from yaml import YAMLError

    usual = _usual_loader()

    def loaded(text: str) -> Any:
        return text if _is_comment(text) or text in texts else usual(text)

    set_loader("yaml", loaded, (YAMLError,), json_superset=False)


@functools.cache
def _usual_loader() -> Callable[[str], Any]:
    """What jsonargparse reads YAML with."""
    from jsonargparse import get_loader

    return get_loader("yaml")  # type: ignore[no-any-return]


def _is_comment(text: str) -> bool:
    """Whether a text is a single line that YAML passes over."""
    return text.lstrip().startswith("#") and "\n" not in text.strip()
