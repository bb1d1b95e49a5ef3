"""Personal data and secrets in a text: e-mail addresses, public IP addresses and keys, each replaced in place.

Most documents have none. One scan of RE2 over the Arrow column finds those that may have some (300 MB/s on one core);
only these become Python bytes. Every pattern is bounded and every search is linear, so that a line of 10 MB costs what
10 MB in short lines do. Within a document a value always gets the same replacement, and replacements are no personal
data, so that they are never replaced again.

Only keys of a known form are found. A rule by entropy would also take the hashes that lock files and checksums are
made of. The method is that of BigCode's (bigcode-dataset, pii) with gitleaks' forms of keys.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

KINDS = ("email", "ip", "key")

# A value in a document: where it begins and ends, in bytes.
Span = tuple[int, int]

_LOCAL_PART = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._%+-"
_MAX_LOCAL_PART = 64
# Two letters are a country; of the others those that people have mail at. `icon@2x.png` is no address.
_TOP_LEVEL = (
    "[a-z]{2}|com|org|net|edu|gov|mil|int|info|biz|name|pro|aero|coop|museum|mobi|asia|cat|jobs|tel|travel|post|dev"
    "|app|xyz|online|site|tech|cloud|email|blog|page|live|network|systems|software|solutions|technology|academy"
    "|agency|berlin|world|life|today|zone|space|studio|digital|company|team|works|group|social|science|engineering"
)
_DOMAIN = rf"(?!\d+\.\d+\.)(?:[a-z0-9](?:[a-z0-9-]{{0,62}})\.){{1,6}}(?:{_TOP_LEVEL})(?![\w(@-])"
_AT = re.compile(rf"@(?=({_DOMAIN}))".encode(), re.IGNORECASE)
# Nobody's addresses: reserved names (RFC 2606) and the user of every repository.
_NOBODY = re.compile(rb"(?:^git@)|@(?:[\w-]+\.){0,6}example\.(?:com|org|net)$", re.IGNORECASE)

# Both begin with what parts their first two numbers, which Python's `re` looks for at the speed of memory, and look
# back from there: in files full of numbers that is twenty times as fast as to try each digit.
_IPV4 = re.compile(
    rb"\.(?=\d{1,3}\.\d{1,3}\.\d)"
    rb"(?:(?<=(?<![\w.])(\d)\.)|(?<=(?<![\w.])(\d\d)\.)|(?<=(?<![\w.])(\d\d\d)\.))"
    rb"(?:\d{1,3}\.){2}\d{1,3}(?!\.?\w|-[A-Za-z])"
)
_IPV6 = re.compile(rb":(?<=(?<![\w:.])([23][0-9A-Fa-f]{3}):)[0-9A-Fa-f:]{2,34}(?![\w:])")
# Numbers of four parts near which such a word stands are versions, or names of objects (ASN.1).
_VERSION_BEFORE = re.compile(
    rb"version|assembly|release|\bver\b|\bv\.?\s*$|==\s*$|\boid\b|section|chapter", re.IGNORECASE
)
_SERVER_NEAR = re.compile(rb"dns|server|address|\bip\b|host", re.IGNORECASE)
# Beside fractions without a zero it is part of a drawing (SVG): 1.41.58.55 are three numbers.
_DRAWING = re.compile(rb"(?<!\d)\.\d")
_BESIDE_BYTES = 24
_OBJECT_NAMES = (b"2.5.4.", b"2.5.29.")
_NEAR_BYTES = 100
_KNOWN_SERVERS = frozenset(
    b"8.8.8.8 8.8.4.4 1.1.1.1 1.0.0.1 9.9.9.9 149.112.112.112 208.67.222.222 208.67.220.220 76.76.2.0 76.76.10.0"
    b" 64.6.64.6 64.6.65.6 4.2.2.1 4.2.2.2".split()
)

# Keys by their issuers' forms, valid for RE2 and for Python: without looking around, and with bounded repetition.
_KEYS = (
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}",  # Amazon
    r"gh[pousr]_[A-Za-z0-9]{36,255}",  # GitHub
    r"github_pat_[A-Za-z0-9]{22}_[A-Za-z0-9]{59}",
    r"glpat-[A-Za-z0-9_-]{20,64}",  # GitLab
    r"xox[abeoprs]-[0-9]{1,3}[A-Za-z0-9-]{10,200}",  # Slack
    r"xapp-[0-9]-[A-Z0-9]{8,16}-[0-9]{8,20}-[a-f0-9]{32,80}",
    r"[sr]k_(?:live|test)_[A-Za-z0-9]{16,128}",  # Stripe
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-AgE[A-Za-z0-9_-]{50,400}",
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"GOCSPX-[A-Za-z0-9_-]{28}",
    r"ya29\.[A-Za-z0-9_-]{30,400}",
    r"SG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}",  # SendGrid
    r"key-[0-9a-f]{32}",  # Mailgun
    r"[0-9a-f]{32}-us[0-9]{1,2}",  # Mailchimp
    r"SK[0-9a-f]{32}",  # Twilio
    r"sk-(?:ant|proj|svcacct|or)-[A-Za-z0-9_-]{20,200}",  # Anthropic, OpenAI, OpenRouter
    r"sk-[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}",
    r"hf_[A-Za-z]{34}",  # Hugging Face
    r"do[opr]_v1_[a-f0-9]{64}",  # DigitalOcean
    r"dapi[0-9a-f]{32}",  # Databricks
    r"shp(?:at|ca|pa|ss)_[A-Fa-f0-9]{32}",  # Shopify
    r"[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38}",  # Discord
    r"[0-9]{8,10}:AA[A-Za-z0-9_-]{33}",  # Telegram
    r"eyJ[A-Za-z0-9_-]{10,2000}\.eyJ[A-Za-z0-9_-]{10,6000}\.[A-Za-z0-9_-]{10,2000}",  # JSON web tokens
)
# Secrets that only the words before them betray; the value is what is replaced.
_NAMED_KEYS = (
    r"(?i:secret_?access_?key)[\"']?[ \t]{0,8}(?:=>|[:=,])[ \t]{0,8}[\"']?(?P<amazon>[A-Za-z0-9/+]{40})",
    r"(?i:accountkey)=(?P<azure>[A-Za-z0-9+/]{86}==)",
    r"hooks\.slack\.com/services/(?P<slack>T[A-Z0-9]{6,12}/B[A-Z0-9]{6,12}/[A-Za-z0-9]{20,28})",
)
_BLOCK_HEAD = r"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
_KEY = re.compile(rf"(?<![A-Za-z0-9_])(?:{'|'.join(_KEYS)})(?![A-Za-z0-9_])".encode())
_NAMED_KEY = re.compile(rf"(?:{'|'.join(_NAMED_KEYS)})(?![A-Za-z0-9/+])".encode())
_KEY_BLOCK = re.compile(rf"{_BLOCK_HEAD}((?:[^-]|-(?!----)){{24,16384}})-----END [A-Z0-9 ]{{1,60}}-----".encode())
_ENCODED = re.compile(rb"[A-Za-z0-9+/]{20}")

# What RE2 looks for in every document, by what finds it then: all that the patterns above can find, and a little more.
_MAY_HOLD = {
    "email": r"[A-Za-z0-9._%+-]@[A-Za-z0-9][A-Za-z0-9-]*\.[A-Za-z0-9]",
    "ip": r"\b[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]|\b[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2}",
    "key": "|".join(
        (
            r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z2-7]{16}|\bgh[pousr]_[A-Za-z0-9]{30}|\bgithub_pat_|\bglpat-|\bxox[abeoprs]-[0-9]",
            r"\bxapp-[0-9]|\b[sr]k_(?:live|test)_|\bnpm_[A-Za-z0-9]{30}|\bpypi-AgE|\bAIza|\bGOCSPX-|\bya29\.|\bSG\.",
            r"\bkey-[0-9a-f]{32}|[0-9a-f]{32}-us[0-9]|\bSK[0-9a-f]{32}|\bsk-(?:ant|proj|svcacct|or)-|T3BlbkFJ",
            r"\bhf_[A-Za-z]{30}|\bdo[opr]_v1_|\bdapi[0-9a-f]{32}|\bshp(?:at|ca|pa|ss)_|\b[0-9]{8,10}:AA[A-Za-z0-9_-]{30}",
            r"\b[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27}|eyJ[A-Za-z0-9_-]{10}",
        )
    ),
    "named key": r"(?i:secret_?access_?key)|(?i:accountkey)=|hooks\.slack\.com/services/T",
    "key block": "PRIVATE KEY",
}


def redacted(texts: pa.Array) -> tuple[pa.LargeStringArray, dict[str, int]]:
    """Replace personal data and secrets in a string column of n texts.

    Versions, dates, hashes, private and documentation addresses and well-known name servers stay. Memory: the column
    once more, if anything is replaced; otherwise it comes back as it is.

    Returns:
        The column, nulls kept, and the number of replacements by kind (KINDS).
    """
    large = texts.cast(pa.large_string())
    counts = dict.fromkeys(KINDS, 0)
    suspects = _holding(large, "|".join(_MAY_HOLD.values()))
    if not len(suspects):
        return large, counts
    some = large.take(suspects)
    held = {name: set(_holding(some, pattern).to_pylist()) for name, pattern in _MAY_HOLD.items()}
    rows, contents = [], []
    for number, row in enumerate(suspects.to_pylist()):
        content = some[number].as_buffer().to_pybytes()
        spans = _spans(content, [name for name, numbers in held.items() if number in numbers])
        if spans:
            rows.append(row)
            contents.append(_replaced(content, spans, counts))
    if not rows:
        return large, counts
    mask = np.zeros(len(large), bool)
    mask[rows] = True
    return pc.replace_with_mask(
        large, pa.array(mask), pa.array(contents, pa.large_binary()).cast(pa.large_string())
    ), counts


def _holding(texts: pa.LargeStringArray, pattern: str) -> pa.Array:
    """Numbers of the texts in which RE2 finds a pattern."""
    return pc.indices_nonzero(pc.fill_null(pc.match_substring_regex(texts, pattern), False))


def _spans(content: bytes, names: list[str]) -> list[tuple[Span, str]]:
    """What these _FINDERS find, from left to right, with its kind; of what overlaps, the first and longest."""
    finders = (_FINDERS[name] for name in names)
    found = sorted(
        chain.from_iterable(((span, kind) for span in find(content)) for kind, find in finders),
        key=lambda one: (one[0][0], -one[0][1]),
    )
    spans, free_from = [], 0
    for span, kind in found:
        if span[0] >= free_from:
            spans.append((span, kind))
            free_from = span[1]
    return spans


def _replaced(content: bytes, spans: list[tuple[Span, str]], counts: dict[str, int]) -> bytes:
    """`content` with other values in the spans: the n-th distinct one of its kind gets the n-th replacement."""
    names: dict[tuple[str, bytes], bytes] = {}
    seen = dict.fromkeys(KINDS, 0)
    parts: list[bytes] = []
    at = 0
    for (begin, end), kind in spans:
        value = content[begin:end]
        if (kind, value) not in names:
            seen[kind] += 1
            names[kind, value] = _replacement(kind, value, seen[kind])
        parts += (content[at:begin], names[kind, value])
        counts[kind] += 1
        at = end
    return b"".join((*parts, content[at:]))


def _replacement(kind: str, value: bytes, number: int) -> bytes:
    if kind == "email":
        return b"user%d@example.com" % number
    if kind == "key":
        return b"REDACTED_KEY_%d" % number
    if b":" in value:
        return b"2001:db8::%x" % (number % 0x10000)
    network = (b"192.0.2", b"198.51.100", b"203.0.113")[number // 254 % 3]  # reserved for documentation (RFC 5737)
    return b"%s.%d" % (network, number % 254 + 1)


def _emails(content: bytes) -> Iterator[Span]:
    for match in _AT.finditer(content):
        at = match.start()
        before = content[max(0, at - _MAX_LOCAL_PART - 1) : at]
        size = len(before) - len(before.rstrip(_LOCAL_PART))
        local = before[len(before) - size :].lstrip(b".-%")
        if 0 < size <= _MAX_LOCAL_PART and local and not local.endswith(b"."):
            span = (at - len(local), match.end(1))
            if not _NOBODY.search(content[slice(*span)]):
                yield span


def _addresses(content: bytes) -> Iterator[Span]:
    for match in _IPV4.finditer(content):
        span = (match.start(match.lastindex or 0), match.end())
        if _is_public(content[slice(*span)]) and not _is_version(content, span):
            yield span
    for match in _IPV6.finditer(content):
        span = (match.start(1), match.end())
        if _is_public(content[slice(*span)]):
            yield span


def _is_public(value: bytes) -> bool:
    try:
        address = ipaddress.ip_address(value.decode())
    except ValueError:  # 999.1.1.1, or 2023:12:10
        return False
    return address.is_global and not address.is_multicast and value not in _KNOWN_SERVERS


def _is_version(content: bytes, span: Span) -> bool:
    """Whether four numbers with dots are more likely a version or an object's name than an address."""
    begin, end = span
    value = content[begin:end]
    line = max(content.rfind(b"\n", max(0, begin - _NEAR_BYTES), begin) + 1, begin - _NEAR_BYTES, 0)
    if value.startswith(_OBJECT_NAMES) or _VERSION_BEFORE.search(content[line:begin]):
        return True
    beside = ((max(0, begin - _BESIDE_BYTES), begin), (end, end + _BESIDE_BYTES))
    if any(_DRAWING.search(content, first, last) for first, last in beside):
        return True
    parts = value.split(b".")
    if all(len(part) == 1 for part in parts) or parts[1] == parts[2] == b"0":
        return not _SERVER_NEAR.search(content[max(0, begin - _NEAR_BYTES) : end + _NEAR_BYTES])
    return False


def _keys(content: bytes) -> Iterator[Span]:
    for match in _KEY.finditer(content):
        yield match.span()


def _named_keys(content: bytes) -> Iterator[Span]:
    for match in _NAMED_KEY.finditer(content):
        yield match.span(match.lastgroup or 0)


def _key_blocks(content: bytes) -> Iterator[Span]:
    for match in _KEY_BLOCK.finditer(content):
        if _ENCODED.search(match[1]):
            yield match.span(1)


_FINDERS: dict[str, tuple[str, Callable[[bytes], Iterator[Span]]]] = {
    "email": ("email", _emails),
    "ip": ("ip", _addresses),
    "key": ("key", _keys),
    "named key": ("key", _named_keys),
    "key block": ("key", _key_blocks),
}
