"""Bytes to text against Python's codecs, languages of names, ids of blocks."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_sources import FRENCH, JAPANESE, RUSSIAN

from spark_jobs.sources import languages
from spark_jobs.sources.decoding import decode
from spark_jobs.sources.identity import file_id, streamed_file_id


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (FRENCH, "latin-1"),
        ("# © 2001\n", "latin-1"),
        ("“quoted” text — with €5 and it’s naïve\n", "cp1252"),
        ("# zażółć gęślą jaźń, proszę bardzo\n", "cp1250"),
        ("// Größe ändern für Straße\n", "cp850"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN, "koi8_r"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        ("# 这是一个中文注释，用于测试编码检测\n", "gb18030"),
        ("# 한국어 주석입니다 테스트\n", "euc_kr"),
        ("# -*- coding: iso-8859-15 -*-\n# prix : 5 € à côté\n", "iso-8859-15"),
        ("\ufeffx = 'é'\n", "utf-8"),
        ("x = 'é𝔘'\r\n", "utf-16"),
        ("\ufeffx = 'é𝔘'\n", "utf-16-be"),
        ("x = 'é𝔘'\n", "utf-32"),
        ("a\rb\r\nc\x0c\u2028d", "utf-8"),
    ],
)
def test_text_comes_back_exactly(text, encoding):
    data = text.encode(encoding)
    found = decode(data)
    assert found.text.decode() == text.removeprefix("\ufeff")
    assert data.decode(found.encoding) == text.removeprefix("\ufeff")


def test_guess_uses_all_of_a_long_file():
    text = "x = 1\n" * 100_000 + FRENCH + "y = 2\n" * 100_000
    assert decode(text.encode("latin-1")).text.decode() == text


@pytest.mark.parametrize(
    ("data", "state"),
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b"a\0b", "binary"),
        ("a\0b".encode("utf-16"), "binary"),
        (b"\xef\xbb\xbfa\xff", "undecodable"),
        (b"\xff\xfea", "undecodable"),
        (b"\xff\xfe\x00\xd8a\x00", "undecodable"),
        (bytes(range(1, 256)), "undecodable"),
        (b"# coding: utf-7\n\x81\x01", "undecodable"),
    ],
)
def test_what_is_no_text_has_a_state(data, state):
    assert decode(data)[0::2] == (state, None)


@given(st.binary(max_size=200))
def test_decoded_text_is_unicode_and_of_that_encoding(data):
    found = decode(data)
    assert (found.text is None) == (found.state != "decoded")
    if found.text is not None:
        assert found.text.decode("utf-8") == data.decode(found.encoding)


@pytest.mark.parametrize("data", [b"x" * 20_000_000 + b"\xe9", b"\xe9" * 9_000_000, b"\xe9 \n" * 3_000_000])
def test_time_is_bounded(data):
    begin = time.monotonic()
    decode(data)
    assert time.monotonic() - begin < 5


@pytest.mark.parametrize(
    ("path", "language"),
    [
        ("a/b.py", "Python"),
        ("a.h", "C"),
        ("a.ts", "TypeScript"),
        ("A.MD", "Markdown"),
        ("a.rs", "Rust"),
        ("a.m", "Objective-C"),
        ("a/Makefile", "Makefile"),
        ("x.blade.php", "Blade"),
        ("v1.2.sql", "SQL"),
        ("a.tar.gz", None),
        ("py", None),
        ("a.py/b", None),
    ],
)
def test_language_of_names(path, language):
    assert languages.of_name(path) == language


def test_unknown_language_is_named_with_near_ones():
    assert languages.require_known(["python", "C++"]) == ["C++", "Python"]
    with pytest.raises(ValueError, match="'Pyton'; near are Python"):
        languages.require_known(["Pyton"])


@given(st.lists(st.binary(max_size=20), max_size=5))
def test_id_of_blocks_is_that_of_the_whole(blocks):
    whole = b"".join(blocks)
    assert streamed_file_id("r", "v", "p", len(whole), blocks) == file_id("r", "v", "p", whole)
