"""A folder that is there whole or not at all: it is made beside its place and renamed into it."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(path: Path, *, overwrite: bool, marks: Sequence[str] = ("*",)) -> Iterator[Path]:
    """An empty folder to be filled; after the block it stands at `path`, or is gone if the block fails.

    A process that is killed leaves `.NAME.unfinished` beside the place, which the next one removes; between the
    renames at the end also `.NAME.replaced` and nothing at `path`, to which the next one puts it back.

    Args:
        path: of the folder.
        overwrite: replace what lies there.
        marks: see `refuse_foreign`.

    Raises:
        FileExistsError: something is at `path` and is not to be replaced.
    """
    path = path.absolute()
    put_back(path)
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file; name a folder")
    refuse_foreign(path, marks)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; --overwrite replaces it")
    unfinished, replaced = _beside(path, "unfinished"), _beside(path, "replaced")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir(parents=True)
        yield unfinished
    except BaseException as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        if _is_of_writing(error, unfinished):
            raise OSError(f"{path} cannot be written: {error}; nothing was changed there") from error
        raise
    shutil.rmtree(replaced, ignore_errors=True)
    if path.exists():
        path.rename(replaced)
    unfinished.rename(path)
    shutil.rmtree(replaced, ignore_errors=True)


def put_back(path: Path) -> None:
    """Rename the folder that stood at `path` back to it, where a process was killed before its own took the place."""
    replaced = _beside(path, "replaced")
    if replaced.is_dir() and not path.exists():
        replaced.rename(path)


def _beside(path: Path, state: str) -> Path:
    return path.with_name(f".{path.name}.{state}")


def _is_of_writing(error: BaseException, folder: Path) -> bool:
    """Whether it is what the system refuses to have written in a folder; `tokenizers` and others name no file.

    Libraries in Rust have kinds of their own for it.
    """
    if isinstance(error, OSError):
        named = error.filename
        return (named is None and error.errno is not None) or Path(str(named)).is_relative_to(folder)
    return isinstance(error, Exception) and "(os error " in str(error)


def refuse_foreign(path: Path, marks: Sequence[str]) -> None:
    """FileExistsError where a folder has files, and none of the names (globs) that what we write there has.

    So `--overwrite` with a wrong name does not delete what somebody else keeps.
    """
    if path.is_dir() and any(path.iterdir()) and not any(any(path.glob(mark)) for mark in marks):
        raise FileExistsError(
            f"{path} holds something else than what is written here; name another folder, or empty it"
        )


def require_apart(output: str, inputs: Sequence[str]) -> None:
    """Refuse an output that lies in one of its inputs, or they in it: replacing it would delete the other."""
    ours = Path(output).resolve()
    for path in inputs:
        theirs = Path(path).resolve()
        if ours.is_relative_to(theirs) or theirs.is_relative_to(ours):
            raise ValueError(f"--output {output} and {path} lie in one another; name another folder")
