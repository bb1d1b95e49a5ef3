"""Bytes to text: byte order mark, then strict UTF-8, then detection, else a state that says why not.

What counts as text is exact: no newline is translated, no character replaced, only the byte order mark goes.
Detection is a guess. It runs only on what is not UTF-8 (about one file in a thousand of public source code)
and on at most 32 KB of evidence; the whole is then decoded strictly with what was found. A declared encoding
(PEP 263, XML, HTML, Emacs and Vim lines) is believed if it decodes the file. Short texts fit many encodings:
two accented letters cannot tell cp1250 from cp1252, and ties go to the commoner one.
"""

import codecs
import re
from typing import NamedTuple

# The states of a file, in the ledger's words. All but "decoded" have no content.
DECODED, EMPTY, BINARY, OVERSIZED = "decoded", "empty", "binary", "oversized"
UNDECODABLE, UNREADABLE = "undecodable", "unreadable"
STATES = (DECODED, EMPTY, BINARY, OVERSIZED, UNDECODABLE, UNREADABLE)

# UTF-32 first: its little-endian mark begins with that of UTF-16. These codecs take the mark away.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

# Encodings that source files are really in, the commoner first. Macintosh and DOS pages outside this list fit
# almost any bytes, and an unrestricted detector prefers them for two lines of French.
_WESTERN = ("cp1252", "cp1250", "iso8859_15", "cp850", "cp437")
_OTHERS = ("cp932", "gb18030", "euc_jis_2004", "big5", "cp949", "cp1251", "koi8_r", "cp1253", "cp1255", "cp1256")
_DECLARED = re.compile(rb"(?:coding|charset|encoding)\s{0,4}[:=]\s{0,4}[\"']?([A-Za-z][-\w.]{1,30})")
_TEXT_CODEC = re.compile(
    r"(cp\d+|iso8859[-_]\d+|koi8[-_]\w|mac[-_]\w+|gb\w+|big5\w*|euc[-_]\w+|shift[-_]jis\w*|johab|hz|iso2022[-_]\w+"
    r"|ptcp154|kz1048|tis[-_]620|hp[-_]roman8)"
)
_HIGH = re.compile(rb"[\x80-\xff]")
_HIGH_RUNS = re.compile(rb"[\x80-\xff]+")
_CONTROLS = re.compile(rb"[\x01-\x08\x0e-\x1a\x1c-\x1f]")

_HEADER_BYTES = 1024
_EVIDENCE_BYTES = 32 * 1024
_LINE_BYTES = 2048


class Decoded(NamedTuple):
    """What became of a file's bytes: `text` is its content as valid UTF-8, None in every state but decoded."""

    state: str
    encoding: str | None
    text: bytes | None


def decode(data: bytes) -> Decoded:
    """Decode a whole file.

    Returns the content as UTF-8 bytes (the input object itself where it was UTF-8 already), because Arrow wants
    those, and the name of a codec for which `data.decode(encoding)` gives the content again.
    """
    if not data:
        return Decoded(EMPTY, None, None)
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return _marked(data, encoding)
    if b"\0" in data:
        return Decoded(BINARY, None, None)
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return _detected(data)
    return Decoded(DECODED, "utf-8", data)


def _marked(data: bytes, encoding: str) -> Decoded:
    text = _strictly(data, encoding)
    if text is None:
        state = BINARY if encoding == "utf-8-sig" and b"\0" in data else UNDECODABLE
        return Decoded(state, None, None)
    if not text:
        return Decoded(EMPTY, encoding, None)
    if b"\0" in text:
        return Decoded(BINARY, None, None)
    return Decoded(DECODED, encoding, text)


def _detected(data: bytes) -> Decoded:
    for encoding in (*_declared(data), *_candidates(_evidence(data))):
        text = _strictly(data, encoding)
        if text:
            return Decoded(DECODED, codecs.lookup(encoding).name, text)
    return Decoded(UNDECODABLE, None, None)


def _strictly(data: bytes, encoding: str) -> bytes | None:
    try:
        return data.decode(encoding).encode("utf-8")
    except (UnicodeError, LookupError):
        return None


def _declared(data: bytes) -> list[str]:
    """The encoding that the first lines name, if it is one of text; a declared UTF-8 has failed already."""
    found = _DECLARED.search(data[:_HEADER_BYTES])
    if not found:
        return []
    try:
        name = codecs.lookup(found[1].decode()).name
    except LookupError:
        return []
    return [name] if _TEXT_CODEC.fullmatch(name) else []


def _evidence(data: bytes) -> bytes:
    """The lines that hold bytes above 0x7f, up to 32 KB: all that the guess can rest on.

    A line too long is cut around its first such byte, which may cut a character at its end; so the evidence may
    fail to decode although the file does not, and such a file is undecodable or guessed by fewer lines.
    """
    lines: list[bytes] = []
    held_bytes = position = 0
    while held_bytes < _EVIDENCE_BYTES and (found := _HIGH.search(data, position)):
        first = found.start()
        begin = max(data.rfind(b"\n", 0, first) + 1, first - _LINE_BYTES)
        end = data.find(b"\n", first, first + _LINE_BYTES) + 1
        if not end:
            end = min(len(data), first + _LINE_BYTES)
            end = data.rfind(b" ", first, end) + 1 or end if end < len(data) else end
        lines.append(data[begin:end])
        held_bytes += end - begin
        position = end
    return b"".join(lines)


def _candidates(evidence: bytes) -> list[str]:
    """Codecs that may be right, the likeliest first.

    In western text the high bytes stand alone between ASCII letters, elsewhere they come in runs. The detector
    does not ask, and reads a lone copyright sign as Japanese; so it is asked only about those that the runs allow.
    """
    from charset_normalizer import from_bytes

    if _CONTROLS.search(evidence):
        return []
    runs = [len(run) for run in _HIGH_RUNS.findall(evidence)]
    western = sum(length == 1 for length in runs) >= 0.8 * len(runs)
    allowed = _WESTERN if western else _OTHERS + _WESTERN
    found = from_bytes(evidence, cp_isolation=list(allowed), preemptive_behaviour=False)
    ranked = sorted(
        (round(match.chaos, 2), -round(match.coherence, 1), allowed.index(name), name)
        for match in found
        for name in {match.encoding, *match.could_be_from_charset}
        if name in allowed
    )
    # Many accents look like noise to the detector: where they stand alone, the commonest page is the better guess.
    return [name for *_, name in ranked] or list(_WESTERN[:1] if western else ())
