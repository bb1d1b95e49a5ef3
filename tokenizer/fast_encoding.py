"""gigatoken behind one function: Arrow's buffers in, ids end to end out. The rest of the project does without it."""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

log = logging.getLogger("corella")

# What gigatoken may remember.
CACHE_BYTES = 256 << 20
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

Bytes = NDArray[np.uint8]
Bounds = NDArray[np.int64]
Ids = NDArray[np.uint32]


class RefusedError(Exception):
    """The fast encoder does not take these documents."""


class FastEncoder(Protocol):
    """What encodes documents without a Python object for any of them."""

    def encode(self, data: Bytes, bounds: Bounds) -> tuple[Ids, Bounds]:
        """The ids of documents end to end, and the n + 1 bounds of the documents in them.

        Args:
            data: UTF-8.
            bounds: n + 1 bounds of the documents in `data`.

        Raises:
            RefusedError: it takes at least one of them not.
        """


class Gigatoken:
    """gigatoken's tokenizer, which borrows Arrow's buffers by way of awkward arrays.

    It remembers every word that it has met: 400 MB of words that never repeat cost 3 GB. So it is loaded anew (a tenth
    of a second) when the process has grown by CACHE_BYTES while it encoded.
    """

    def __init__(self, settings: str) -> None:
        import awkward  # noqa: F401 - not to be counted as growth

        self._settings, self._grown_bytes = settings, 0
        self._load()

    def encode(self, data: Bytes, bounds: Bounds) -> tuple[Ids, Bounds]:
        before = _resident_bytes()
        ids, ends = self._encoded(data, bounds)
        after = _resident_bytes()
        # Where that cannot be asked, the worst is taken: eight bytes a byte of text.
        unknown = 8 * int(bounds[-1] - bounds[0])
        self._grown_bytes += max(0, after - before - ids.nbytes) if before and after else unknown
        if self._grown_bytes > CACHE_BYTES:
            self._load()
        return ids, ends

    def _load(self) -> None:
        import gigatoken

        self._backend: Any = None
        self._backend = gigatoken.Tokenizer.from_json(self._settings).backend
        self._grown_bytes = 0

    def _encoded(self, data: Bytes, bounds: Bounds) -> tuple[Ids, Bounds]:
        import awkward
        from awkward.contents import ListOffsetArray, NumpyArray

        characters = NumpyArray(data, parameters={"__array__": "char"})
        texts = ListOffsetArray(awkward.index.Index64(bounds), characters, parameters={"__array__": "string"})
        try:
            lists = self._backend.encode_batch(awkward.Array(texts), parallel=False).layout
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of the Rust code is no Exception
            raise RefusedError(str(error)) from error
        ids, ends = np.asarray(lists.content.data), np.asarray(lists.offsets.data)
        return ids[ends[0] : ends[-1]], ends - ends[0]


def _resident_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def fast_encoder(settings: Mapping[str, Any]) -> FastEncoder | None:
    """The fast encoder for the contents of a `tokenizer.json`; None if there is none that takes them.

    It makes the text of a special token its id, and so gets a copy without special tokens.
    """
    added = [token for token in settings.get("added_tokens") or [] if not token["special"]]
    plain = {**settings, "added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
    try:
        return Gigatoken(json.dumps(plain))
    except ImportError:
        log.warning("gigatoken is not installed: tokenizers encodes, some 80 times slower")
    except (ValueError, NotImplementedError, RuntimeError) as error:
        reason = str(error).split("\n")[0]
        log.warning("gigatoken does not take this tokenizer (%s): tokenizers encodes, some 80 times slower", reason)
    return None
