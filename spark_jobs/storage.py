"""Folders of files on any file system that pyarrow knows, as the driver and the workers need them."""

import os
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.fs as arrow_fs
from pyarrow import parquet

# Files of a data set whose footers the driver reads.
MAX_CHECKED = 1000


class Storage:
    """A folder on any file system that pyarrow knows, for the few small files that the driver reads and writes."""

    def __init__(self, path: str) -> None:
        local = path.removeprefix("file://")
        if "://" in local:
            self.uri = path
            self.filesystem, self.root = arrow_fs.FileSystem.from_uri(path)
        else:  # not percent-encoded, because Spark takes the escapes of a local path for its name
            self.filesystem, self.root = arrow_fs.LocalFileSystem(), os.path.abspath(local)
            self.uri = f"file://{self.root}"

    def exists(self, name: str = "") -> bool:
        return self.filesystem.get_file_info(self._at(name)).type != arrow_fs.FileType.NotFound

    def read(self, name: str) -> bytes:
        with self.filesystem.open_input_file(self._at(name)) as file:
            return file.read()

    def write(self, name: str, data: bytes) -> None:
        self.filesystem.create_dir(self.root, recursive=True)
        with self.filesystem.open_output_stream(self._at(name)) as file:
            file.write(data)

    def open_output(self, name: str) -> pa.NativeFile:
        self.filesystem.create_dir(self.root, recursive=True)
        return self.filesystem.open_output_stream(self._at(name))

    def move(self, name: str, new_name: str) -> None:
        self.filesystem.move(self._at(name), self._at(new_name))

    def listed(self, prefix: str) -> list[str]:
        """Names of what lies in the folder itself and begins so."""
        if not self.exists():
            return []
        found = self.filesystem.get_file_info(arrow_fs.FileSelector(self.root))
        return sorted(file.base_name for file in found if file.base_name.startswith(prefix))

    @property
    def is_empty(self) -> bool:
        """Whether this is a folder in which nothing lies."""
        is_folder = self.filesystem.get_file_info(self.root).type == arrow_fs.FileType.Directory
        return is_folder and not self.listed("")

    def delete(self, name: str) -> None:
        self.filesystem.delete_file(self._at(name))

    def delete_folder(self) -> None:
        self.filesystem.delete_dir(self.root)

    def files(self, suffix: str = ".parquet") -> list[arrow_fs.FileInfo]:
        """The data files below the folder (or the one file that the path names), by path; hidden ones left out."""
        info = self.filesystem.get_file_info(self.root)
        if info.type == arrow_fs.FileType.File:
            return [info]
        found = self.filesystem.get_file_info(arrow_fs.FileSelector(self.root, recursive=True))
        shown = [file for file in found if file.is_file and file.path.endswith(suffix) and not self._hidden(file.path)]
        return sorted(shown, key=lambda file: file.path)

    def _hidden(self, path: str) -> bool:
        return any(part.startswith(("_", ".")) for part in path[len(self.root) :].split("/"))

    def _at(self, name: str) -> str:
        return f"{self.root}/{name}" if name else self.root


def parquet_files(path: str, columns: Sequence[str]) -> list[arrow_fs.FileInfo]:
    """The Parquet files at `path`; ValueError if there is none, or one is damaged or lacks one of these text columns.

    Of more than MAX_CHECKED files as many are looked at.
    """
    storage = Storage(path)
    if not storage.exists():
        raise ValueError(f"{path} does not exist")
    files = storage.files()
    if not files:
        raise ValueError(f"{path} holds no Parquet files")
    for info in files[:: max(1, len(files) // MAX_CHECKED)]:
        try:
            with storage.filesystem.open_input_file(info.path) as file:
                there = parquet.read_schema(file)
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{info.path} is no Parquet file, or damaged: {error}") from None
        _require_texts(there, columns, info.path)
    return files


def _require_texts(there: pa.Schema, columns: Sequence[str], path: str) -> None:
    if missing := [name for name in columns if name not in there.names]:
        raise ValueError(f"{path} lacks the column(s) {', '.join(missing)}; it has {', '.join(there.names)}")
    texts = ("string", "large_string", "string_view")
    if odd := [name for name in columns if str(there.field(name).type) not in texts]:
        raise ValueError(f"{path}: the column {odd[0]} is {there.field(odd[0]).type}; it must be a string")


def parquet_rows(path: str) -> int:
    """Rows of the Parquet data at `path`, from the files' footers; of more than MAX_CHECKED files as they say."""
    storage = Storage(path)
    files = storage.files()
    looked_at = files[:: max(1, len(files) // MAX_CHECKED)]
    rows = 0
    for info in looked_at:
        with storage.filesystem.open_input_file(info.path) as file:
            rows += parquet.ParquetFile(file).metadata.num_rows
    return rows * len(files) // max(1, len(looked_at))
