"""Redaction: what must go, what must stay, and that the quick scan hides nothing from the exact patterns."""

import re
import time

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_jobs.rules import redaction
from spark_jobs.rules.redaction import KINDS, redacted

# Put together here, so that no scanner takes this file for a leak.
KEYS = {
    "amazon": "AKIA" + "QWERTYUIOPASDFGH",
    "github": "ghp_" + "a1B2c3D4e5F6" * 3,
    "github fine": "github_pat_" + "A1b2C3d4E5f6G7h8I9j0Kl" + "_" + "a1B2c3D4e5" * 5 + "abcdefghi",
    "gitlab": "glpat-" + "Ab1-Cd2_Ef3Gh4Ij5Kl6",
    "slack": "xoxb-" + "123456789012-abcdefABCDEF",
    "stripe": "sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc",
    "npm": "npm_" + "aB3dE6gH9j" * 3 + "kLmNoP",
    "pypi": "pypi-AgE" + "IcHlwaS5vcmc" * 6,
    "google": "AIza" + "SyA-1234567890abcdefghijklmnopqrstu",
    "sendgrid": "SG." + "a" * 22 + "." + "b1" * 21 + "c",
    "mailchimp": "0123456789abcdef" * 2 + "-us12",
    "twilio": "SK" + "0123456789abcdef" * 2,
    "openai": "sk-proj-" + "abc123DEF456" * 4,
    "hugging face": "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYzAbCdEfGh",
    "discord": "M" + "TIzNDU2Nzg5MDEyMzQ1Njc4" + "x.Gabcde." + "a1b2c3d4e5f6" * 2 + "xyz",
    "telegram": "123456789:AA" + "abcdefghijk" * 3,
    "web token": "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0.abcDEF123-_xyz",
}
NAMED = {
    'aws_secret_access_key = "{}"': "wJalrXUtnFEMI/K7MDENG+bPxRfiCYzzzzzzKEY1",
    "AccountName=x;AccountKey={};Endpoint": "Ab1+/" * 17 + "x==",
    "https://hooks.slack.com/services/{}": "T01ABCDEF/B01ABCDEF/abcdefghijklmnopqrstuvwx",
}
BLOCK = "-----BEGIN {0}PRIVATE KEY-----\n{1}\n-----END {0}PRIVATE KEY-----\n"
STAY = [
    "requests==2.31.0.1",
    "Version 3.14.15.92",
    "Chrome/99.0.4844.51",
    "AssemblyVersion(4.20.10.3)",
    "released 2024.01.15.03 and 12.11.10",
    "objects 1.3.6.1 and 2.5.29.17 and 1.2.840.113549",
    "tables 1.2.3.4 and 4.0.0.0",
    '<path d="m55 1.05.59 1.42l9 9c.36.36.86.58 1.41.58.55 0 1.05-.22 1.41-.59 0 2.8 200.107.13.26-.59"/>',
    "hosts 127.0.0.1 10.1.2.3 192.168.1.254 172.16.9.8 0.0.0.0 255.255.255.0 224.0.0.251 192.0.2.17",
    "dns servers 8.8.8.8, 1.1.1.1 and 208.67.222.222",
    "::1 fe80::1 2001:db8::17 fd00::42 std::vector<int> 2023:12:10 2011::Foo",
    "git@github.com:owner/name.git someone@example.com icon@2x.png lodash@4.17.21 left@right.transpose()",
    "@decorator\ndef f(x): return x @y.dot(a@b.to(c))",
    "sha256 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    '"integrity": "sha512-v2kDEe57lecTulaDIuNTPy3Ry4gLGJ6Z1O3vE1krgXZNrsQ+LFTGHVxVjcXPs17LhbZVGedAJv8XZ1tvj5FvSg=="',
    "123e4567-e89b-12d3-a456-426614174000",
    "task-list-item risk-taking mask_live_preview disk_test_ok npm_config_registry hf_hub_download key-value",
    'if "-----BEGIN PRIVATE KEY-----" in text and "-----END PRIVATE KEY-----" in text: pass',
]


def one(text):
    found, counts = redacted(pa.array([text]))
    return found[0].as_py(), counts


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_keys_of_a_known_form_go(key):
    assert one(f'token = "{key}"\n') == ('token = "REDACTED_KEY_1"\n', {"email": 0, "ip": 0, "key": 1})
    longer = f"x{key}"
    assert one(longer)[0] == longer, "part of a longer word"


@pytest.mark.parametrize(("form", "key"), NAMED.items())
def test_keys_that_a_name_betrays_go(form, key):
    assert one(form.format(key))[0] == form.format("REDACTED_KEY_1")
    assert one(key)[0] == key


@pytest.mark.parametrize("kind", ["", "RSA ", "EC ", "OPENSSH "])
def test_private_key_blocks_go(kind):
    block = BLOCK.format(kind, "Proc-Type: 4,ENCRYPTED\n\n" + "MIIEpAIBAAKCAQEA7bq+/Zz0\n" * 30 + "abc=")
    text, counts = one(f"key = '''{block}'''")
    assert text == f"key = '''-----BEGIN {kind}PRIVATE KEY-----REDACTED_KEY_1-----END {kind}PRIVATE KEY-----\n'''"
    assert counts["key"] == 1


@pytest.mark.parametrize("text", STAY)
def test_what_only_looks_like_it_stays(text):
    assert one(text) == (text, dict.fromkeys(KINDS, 0))


def test_addresses_of_people_and_machines_go():
    text = (
        "# Ann <ann.lee+x@Mail.Corp.example-firm.co.uk>, bob_1@foo.org; ann.lee+x@Mail.Corp.example-firm.co.uk.\n"
        "ping 93.184.216.34:80 or 151.101.1.69/24, 2606:4700:4700::6810:85e5 (93.184.216.34). DNS server 3.4.5.6\n"
    )
    wanted = (
        "# Ann <user1@example.com>, user2@example.com; user1@example.com.\n"
        "ping 192.0.2.2:80 or 192.0.2.3/24, 2001:db8::3 (192.0.2.2). DNS server 192.0.2.5\n"
    )
    assert one(text) == (wanted, {"email": 3, "ip": 5, "key": 0})


def test_a_column_keeps_its_rows_and_an_untouched_one_its_memory():
    texts = pa.array(["skipped", "a@b.de", None, "é x@y.org é", "", "none"]).slice(1)
    found, counts = redacted(texts)
    assert found.type == pa.large_string()
    assert found.to_pylist() == ["user1@example.com", None, "é user1@example.com é", "", "none"]
    assert counts["email"] == 2
    clean = pa.array(["nothing", None, "@here 1.2"], pa.large_string())
    assert redacted(clean)[0].buffers()[2].address == clean.buffers()[2].address
    assert redacted(pa.array([], pa.string()))[0].to_pylist() == []


VALUES = [*KEYS.values(), *NAMED.values(), *(form.format(key) for form, key in NAMED.items()), *STAY]
VALUES += [
    "ann@foo.org",
    "b.c@x-y.io",
    "93.184.216.34",
    "8.8.8.8",
    "3.4.5.6",
    "2606:4700::1",
    BLOCK.format("", "Ab1+" * 9),
]
VALUES += ["@", ".", ":", "1", "x", "a@", "@b.de", "-", "_", "é", "日本", "version ", "server ", "secret_access_key="]
pieces = st.sampled_from(VALUES) | st.sampled_from(" \n\t'\"=:,;.@-_/") | st.text(max_size=4)
documents = st.lists(pieces, max_size=12).map("".join)


@settings(deadline=None, max_examples=300)
@given(st.lists(documents, max_size=4))
def test_the_quick_scan_hides_nothing(texts):
    found, counts = redacted(pa.array(texts, pa.string()))
    exact = dict.fromkeys(KINDS, 0)
    for text, result in zip(texts, found.to_pylist(), strict=True):
        content = text.encode()
        spans = redaction._spans(content, list(redaction._MAY_HOLD))
        assert result == redaction._replaced(content, spans, exact).decode()
    assert counts == exact


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["a@b.de", "c@d.org", "93.184.216.34", "151.101.1.69", *KEYS.values()]), max_size=12))
def test_equal_values_get_equal_replacements_and_no_second_ones(values):
    text = " ".join(values)
    found, counts = one(text)
    replaced = found.split()
    assert len(replaced) == len(values) == sum(counts.values())
    assert len(set(zip(values, replaced, strict=True))) == len(set(values)) == len(set(replaced))
    assert one(found) == (found, dict.fromkeys(KINDS, 0))


# What the patterns of addresses say without looking back from their middle.
PLAIN = {
    "_IPV4": re.compile(rb"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w|-[A-Za-z])"),
    "_IPV6": re.compile(rb"(?<![\w:.])[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,34}(?![\w:])"),
}
numbers = st.sampled_from(["1", "22", "255", "1234", ".", "..", ":", "::", "2001:", "3fff:", "ab", "-", " ", "_", "é"])


@settings(deadline=None, max_examples=500)
@given(st.lists(numbers, max_size=24).map("".join))
def test_addresses_are_those_of_the_plain_patterns(text):
    content = text.encode()
    for name, plain in PLAIN.items():
        found = getattr(redaction, name).finditer(content)
        assert [(m.start(m.lastindex), m.end()) for m in found] == [m.span() for m in plain.finditer(content)]


LONG = ["a", "a@", "a@a.", "1.", "0", "a.", "2001:", "-N", "eyJ", "ghp_", "sk-ant-", "12345678:AA", "N" * 25 + "."]
LONG += [
    "-----BEGIN PRIVATE KEY-----",
    "secret_access_key=",
    "eyJ" + "a" * 13 + ".",
    "x@" + "b" * 60 + ".",
    "f" * 32 + "-us",
]


@pytest.mark.parametrize("piece", LONG)
def test_time_is_linear_in_long_lines(piece):
    """A quadratic search would take hours for these 2 MB without an end of line."""
    begin = time.perf_counter()
    redacted(pa.array([piece * ((2 << 20) // len(piece)) + " a@b.de 93.184.216.34 " + KEYS["npm"]]))
    assert time.perf_counter() - begin < 8


def test_many_addresses_get_documentation_addresses():
    text, counts = one(" ".join(f"93.184.{number // 256}.{number % 256}" for number in range(1000)))
    assert counts["ip"] == 1000
    assert all(re.fullmatch(r"(192\.0\.2|198\.51\.100|203\.0\.113)\.\d+", value) for value in text.split())
    assert one(text)[0] == text
