"""What a model is asked to continue, or to fill in: on the command line, or in a file, one at a time."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Request:
    """A beginning of text; with a suffix, what is wanted is the text between the two."""

    prompt: str
    suffix: str | None = None

    def __post_init__(self) -> None:
        for name, text in (("prompt", self.prompt), ("suffix", self.suffix or "")):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{name} {text[:40]!r} is no Unicode text: {error.reason}") from None


def requests_of(prompt: Sequence[str] | None, suffix: str | None, prompts: str | None) -> Iterator[Request]:
    """All that is asked, the command line's first; ValueError where it is nothing or contradicts itself."""
    if not prompt and not prompts:
        raise ValueError("there is no prompt; give one or more, as --prompt 'def ', or a file with --prompts")
    if prompts and suffix is not None:
        raise ValueError("--suffix is of --prompt alone; in --prompts, a .jsonl has a `suffix` beside each `prompt`")
    if prompts and not Path(prompts).is_file():
        raise ValueError(f"{prompts} is no file; --prompts names one, with a prompt a line")
    yield from (Request(text, suffix) for text in prompt or ())
    if prompts:
        yield from read_requests(Path(prompts))


def read_requests(path: Path) -> Iterator[Request]:
    """The requests of a file, one at a time; empty lines count only in .jsonl, where they are faults.

    ValueError names a line that is none, a file that is not UTF-8, and one without any request.
    """
    found = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                if path.suffix == ".jsonl" or line.strip():
                    yield _request(line, number, path)
                    found += 1
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8; convert it, as with iconv -f LATIN1 -t UTF-8") from None
    if not found:
        raise ValueError(f"{path} is empty; --prompts wants a prompt a line, or in a .jsonl an object a line")


def _request(line: str, number: int, path: Path) -> Request:
    if path.suffix != ".jsonl":
        return Request(line.rstrip("\r\n"))
    fault = f"{path}, line {number}: no JSON object with a text as `prompt`, and a text or nothing as `suffix`"
    try:
        row = json.loads(line)
    except ValueError:
        raise ValueError(fault) from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise ValueError(fault)
    if not isinstance(row.get("suffix"), str | None):
        raise ValueError(fault)
    try:
        return Request(row["prompt"], row.get("suffix"))
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from None
