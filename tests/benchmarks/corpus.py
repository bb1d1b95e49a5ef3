"""Real corpora: the text files of wheels and of the running environment.

What is built is kept under .bench/corpus; the versions are pinned, so only the environment's share may differ.

    large      the packages of large.txt, one version each, and the environment; the next four are taken of it
    quarter    a quarter of it by paths: the same kind of files, fewer
    accuracy   the packages of versions.txt in several versions, near-copies as forks have them; all pairs can be found
    sample     8,000 files of the large one, for tools that take hours on all
    short      4,000 of them, each of at most 64 KB
    long       the same 4,000 files, each eight times as long and as similar to each other as before
"""

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BENCH = ROOT / ".bench"
PARTS, ROW_GROUP_ROWS, MAX_FILE_BYTES = 16, 1000, 1_000_000
SAMPLE_FILES, SHORT_FILES, SHORT_BYTES, LONG_FACTOR = 8000, 4000, 65_536, 8
TEXT = re.compile(
    r"\.(py|pyi|json|js|ts|tsx|yml|yaml|md|rst|txt|html|css|c|h|cpp|hpp|sh|ps1|toml|cfg|xml|j2|java|go|sql|ipynb)$"
)


class File(NamedTuple):
    """A row of a corpus; `repo` is a package and its version."""

    content: bytes
    repo: str
    path: str

    @property
    def family(self) -> float:
        """In [0, 1), the same for all versions of a file."""
        return int.from_bytes(hashlib.sha256(self.path.encode()).digest()[:4], "big") / 2**32


def real_corpora() -> dict[str, Path]:
    """Folders by name; what is missing is built, which takes minutes, and what stands is left alone."""
    names = ("large", "quarter", "accuracy", "sample", "short", "long")
    folders = {name: BENCH / "corpus" / name for name in names}
    missing = [name for name in names if not folders[name].exists()]
    files = _shuffled([*_files_of_wheels("large.txt"), *_files_of_environment()]) if {*missing} - {"accuracy"} else []
    for name in missing:
        _write(folders[name], _chosen(name, files))
    return folders


def _chosen(name: str, files: list[File]) -> list[File]:
    """The files of one corpus, of all files."""
    short = [file for file in files if len(file.content) <= SHORT_BYTES][:SHORT_FILES]
    match name:
        case "quarter":
            return [file for file in files if file.family < 0.25]
        case "accuracy":
            return _shuffled(list(_files_of_wheels("versions.txt")))
        case "sample":
            return files[:SAMPLE_FILES]
        case "short":
            return short
        case "long":
            return [file._replace(content=_lengthened(file.content)) for file in short]
    return files


def write_parquet(folder: Path, table_of: Callable[[int], pa.Table]) -> None:
    """Parts 0 to 15 of a corpus, each what `table_of` returns; the folder appears when it is whole."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for part in range(PARTS):
        file = unfinished / f"{part:02d}.parquet"
        pq.write_table(table_of(part), file, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def read(folder: Path) -> pa.Table:
    """All rows in file order, which numbers them."""
    return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("*.parquet"))])


def content_bytes(folder: Path) -> int:
    """Bytes of text of a corpus, which speeds are told by."""
    contents = (pq.read_table(file, columns=["content"])["content"] for file in sorted(folder.glob("*.parquet")))
    return sum(pc.sum(pc.binary_length(column)).as_py() for column in contents)


def _shuffled(files: list[File]) -> list[File]:
    random.Random(0).shuffle(files)
    print(f"corpus: {len(files):,} files", file=sys.stderr)
    return files


def _files_of_wheels(pins: str) -> Iterator[File]:
    for pinned in (HERE / pins).read_text().split():
        for wheel in sorted(_downloaded(pinned).glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    yield from _text(name, pinned, archive.read(name) if TEXT.search(name) else b"")


def _downloaded(pinned: str) -> Path:
    """Folder of the wheel of `name==version`. A version that the package index lacks is left out, and said."""
    folder = BENCH / "wheels" / pinned
    if not any(folder.glob("*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--only-binary", ":all:", "--dest", str(folder), pinned]
        if subprocess.run(command, check=False).returncode:
            print(f"corpus: {pinned} could not be downloaded and is left out", file=sys.stderr)
    return folder


def _files_of_environment() -> Iterator[File]:
    """The standard library and the installed packages of the Python that runs this."""
    paths = sysconfig.get_paths()
    for repo, top in (("python", Path(paths["stdlib"])), ("environment", Path(paths["purelib"]))):
        for folder, names, files in os.walk(top):
            names[:] = sorted(set(names) - {"site-packages", "dist-packages"})
            for path in (Path(folder, name) for name in sorted(files)):
                if TEXT.search(path.name) and not path.is_symlink():
                    yield from _text(path.relative_to(top).as_posix(), repo, path.read_bytes())


def _text(path: str, repo: str, content: bytes) -> Iterator[File]:
    """The file if it has text that every tool reads: UTF-8 without null characters, of a sane size."""
    if 0 < len(content) <= MAX_FILE_BYTES and b"\0" not in content:
        try:
            content.decode()
        except UnicodeDecodeError:
            return
        yield File(content, repo, path)


def _lengthened(content: bytes) -> bytes:
    """The text and seven variants of it whose words are others: sets of shingles grow, their similarities stay."""
    variants = [re.sub(rb"\w+", rb"\g<0>_%d" % number, content) for number in range(1, LONG_FACTOR)]
    return b"\n".join([content, *variants])


def _write(folder: Path, files: list[File]) -> None:
    rows = -(-len(files) // PARTS)

    def table_of(part: int) -> pa.Table:
        contents, repos, paths = zip(*files[part * rows : (part + 1) * rows], strict=True)
        content = pa.array(contents, pa.large_binary()).cast(pa.large_string())
        return pa.table({"content": content, "repo_name": repos, "path": paths})

    write_parquet(folder, table_of)
