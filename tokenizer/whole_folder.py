"""A folder that is there whole or not at all: it is made beside its place and renamed into it."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """An empty folder to be filled; after the block it stands at `path`, or is gone if the block fails.

    A process that is killed leaves `.NAME.unfinished` beside the place, which the next one removes.

    Raises:
        FileExistsError: something is at `path` and is not to be replaced.
    """
    path = path.absolute()
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; name a folder")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; --overwrite replaces it")
    unfinished, replaced = (path.with_name(f".{path.name}.{state}") for state in ("unfinished", "replaced"))
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    if path.exists():
        path.rename(replaced)
    unfinished.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def require_apart(output: str, inputs: Sequence[str]) -> None:
    """Refuse an output that lies in one of its inputs, or they in it: replacing it would delete the other."""
    ours = Path(output).resolve()
    for path in inputs:
        theirs = Path(path).resolve()
        if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
            raise ValueError(f"--output {output} and {path} lie in one another; name another folder")
