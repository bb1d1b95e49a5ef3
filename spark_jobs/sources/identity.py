"""The identity of a file: the same on every machine and in every delivery, never a position."""

from collections.abc import Iterable

import xxhash


def file_id(repo: str, revision: str, path: str, content: bytes | memoryview) -> bytes:
    """The 16-byte id of a file: xxh3-128 over repository, revision, path and content, each with its length before it.

    The lengths keep ("ab", "c") and ("a", "bc") apart. Two rows that agree in all four are one file.
    """
    return streamed_file_id(repo, revision, path, len(content), [content])


def streamed_file_id(
    repo: str, revision: str, path: str, size_bytes: int, blocks: Iterable[bytes | memoryview]
) -> bytes:
    """`file_id` of content that arrives in blocks of `size_bytes` altogether, for files too large to hold."""
    fields = [field.encode("utf-8", "surrogateescape") for field in (repo, revision, path)]
    head = b"".join(part for field in fields for part in (len(field).to_bytes(8, "little"), field))
    digest = xxhash.xxh3_128(head + size_bytes.to_bytes(8, "little"))
    for block in blocks:
        digest.update(block)
    return digest.digest()
