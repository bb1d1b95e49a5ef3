"""The one way in: what a shell passes reaches `main`; a fault of the user's is one line and an exit code."""

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_corpus import document, write_documents

from spark_jobs import dedup, filter, ledger, measure, write_shards
from spark_jobs.rules.thresholds import Rules
from tokenizer import inspect_shards, train
from tokenizer.command_line import expand, run
from training import train as train_model


def job(*, sources: list[str] = [], more: list[int] | None = None, size: int = 1, dry_run: bool = False,  # noqa: B006
        overwrite: bool = False, rules: Rules = Rules()):  # fmt: skip # noqa: B008
    """Tell what came in."""
    print(sources, more, size, dry_run, overwrite, rules.max_line_length)
    return size


@pytest.mark.parametrize(
    ("words", "expanded"),
    [
        ("", ""),
        ("--sources a b", '--sources+ ["a"] --sources+ ["b"]'),
        ("--sources a --size 3 --sources b c", '--sources+ ["a"] --size 3 --sources+ ["b"] --sources+ ["c"]'),
        ("--dry_run --sources=a b", '--dry_run true --sources+ ["a"] --sources+ ["b"]'),
        ("--sources a b --dry_run", '--sources+ ["a"] --sources+ ["b"] --dry_run true'),
        ("--more 1 2", "--more+ 1 --more+ 2"),
        ("--dry_run --overwrite", "--dry_run true --overwrite true"),
        ("--dry_run false --overwrite --size 2", "--dry_run false --overwrite true --size 2"),
        ("--sources+ a --sources+=b --overwrite=true", "--sources+ a --sources+=b --overwrite=true"),
        ("--rules.max_line_length 5 --size 2", "--rules.max_line_length 5 --size 2"),
    ],
)
def test_lists_take_words_and_flags_none(words, expanded):
    assert expand(words.split(), job) == expanded.split()


names = st.text("abc./-_ =", min_size=1, max_size=5).filter(lambda name: not name.startswith("-"))


@given(st.lists(names, max_size=4), st.none() | st.integers(0, 9), st.booleans(), st.booleans(), st.randoms())
def test_whatever_order_the_options_stand_in(sources, size, dry_run, overwrite, draw):
    options = [["--sources", *sources]] if sources else []
    options += [["--size", str(size)]] if size is not None else []
    options += [[f"--{name}"] for name, there in (("dry_run", dry_run), ("overwrite", overwrite)) if there]
    draw.shuffle(options)
    found = expand([word for option in options for word in option], job)
    assert [found[place + 1] for place, word in enumerate(found) if word == "--sources+"] == [
        json.dumps([source]) for source in sources
    ]
    assert [found[place + 1] for place, word in enumerate(found) if word == "--size"] == (
        [] if size is None else [str(size)]
    )
    for name, there in (("--dry_run", dry_run), ("--overwrite", overwrite)):
        assert [found[place + 1] for place, word in enumerate(found) if word == name] == ["true"] * there
    assert len(found) == 2 * (len(sources) + (size is not None) + dry_run + overwrite)


def call(main, *arguments):
    """Run a command line within this process; its exit code."""
    level = logging.getLogger("py4j").level
    try:
        with pytest.raises(SystemExit) as ended:
            run(main, [str(argument) for argument in arguments])
    finally:
        logging.getLogger("py4j").setLevel(level)
    return ended.value.code


def test_arguments_reach_main_and_its_result_is_the_exit_code(capsys, tmp_path):
    assert call(job, "--size", 0, "--sources", "a", "b c", "--dry_run", "--rules.max_line_length", 7) == 0
    assert capsys.readouterr().out == "['a', 'b c'] None 0 True False 7\n"
    assert call(job, "--more", 1, 2, "--size", 5) == 5
    assert capsys.readouterr().out == "[] [1, 2] 5 False False 1000\n"
    (tmp_path / "job.yaml").write_text("size: 0\nsources: [x, y]\nrules:\n  max_line_length: 3\n")
    assert call(job, "--config", tmp_path / "job.yaml", "--overwrite") == 0
    assert capsys.readouterr().out == "['x', 'y'] None 0 False True 3\n"
    assert call(job, "--size", 4, "--print_config") == 0
    assert "size: 4" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["# a", "null", "~", "[]", '["a", "b"]', "{}", "x: 1", '"quoted', "1", "é", ""])
def test_words_of_lists_of_texts_are_those_texts(text, capsys):
    assert call(job, "--size", 0, "--sources", text, "b") == 0
    assert capsys.readouterr().out == f"{[text, 'b']} None 0 False False 1000\n"
    assert call(job, "--size", 0, f"--sources={text}") == 0
    assert capsys.readouterr().out == f"{[text]} None 0 False False 1000\n"


@pytest.mark.parametrize(
    "text", ["~", "Null", "&a", "}", ",", "a: b", '"""doc"""', "%s", "[1", "\U0001f600", "x\ny", ""]
)
def test_words_of_optional_texts_are_those_texts(text, capsys):
    def named(*, name: str | None = None, other: str = "", many: list[str] | None = None, size: int | None = 1):
        print([name, other, many, size])

    assert call(named, "--name", text, "--other", text, "--many", text, "--size", "null") == 0
    assert capsys.readouterr().out == f"{[text, text, [text], None]}\n"
    assert call(named, f"--name={text}", f"--many={text}") == 0
    assert capsys.readouterr().out == f"{[text, '', [text], 1]}\n"


@dataclass(frozen=True)
class Group:
    """A group of settings.

    Args:
        texts: some.
        numbers: some.
    """

    texts: tuple[str, ...] = ("x",)
    numbers: list[float] = field(default_factory=list)


def test_lists_of_a_group_take_words_too(capsys):
    def grouped(*, group: Group = Group()):
        print(group.texts, group.numbers)

    assert call(grouped, "--group.texts", "def a", "~", "--group.numbers", "3", "1") == 0
    assert capsys.readouterr().out == "('def a', '~') [3.0, 1.0]\n"
    assert call(grouped, "--group.texts", '["a", "b"]', "--group.numbers=[1, 2]") == 0
    assert capsys.readouterr().out == "('a', 'b') [1.0, 2.0]\n"
    assert call(grouped, "--group.texts", "[x for x in y]", "--group.numbers", "1", "--group.texts=b") == 0
    assert capsys.readouterr().out == "('[x for x in y]', 'b') [1.0]\n"


def test_what_yaml_cannot_read_is_wrong_usage_and_what_is_not_utf8_is_named(capsys, tmp_path):
    (tmp_path / "broken.yaml").write_text("size: {\n")
    for arguments in (("--config", tmp_path / "broken.yaml"), ("--size", "[1"), ("--rules", "{"), ("--size", "@")):
        assert call(job, *arguments) == 2
        assert capsys.readouterr().err.count("\n") == 3
    (tmp_path / "latin.yaml").write_bytes(b"size: 1 # d\xe9j\xe0\n")
    assert call(job, "--config", tmp_path / "latin.yaml") == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'latin.yaml'} is not UTF-8: ")


@pytest.mark.parametrize(
    ("content", "state"),
    [("", "is empty"), ("# size: 1", "begins with '# size: 1'"), ("a b " * 99, f"begins with {'a b ' * 10!r}")],
)
def test_a_file_without_settings_is_told_so(content, state, capsys, tmp_path):
    (tmp_path / "job.yaml").write_text(content)
    assert call(job, "--config", tmp_path / "job.yaml") == 2
    line = f"error: a file of settings has lines as `name: value`, and this one {state}\n"
    assert capsys.readouterr().err.endswith(line)


def test_a_reader_that_goes_ends_a_command_without_a_word(tmp_path):
    script = tmp_path / "talks.py"
    script.write_text(
        "from tokenizer.command_line import run\n"
        "def main():\n"
        "    for number in range(100_000):\n"
        "        print(number)\n"
        "run(main)\n"
    )
    place = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    place.pop("PYTHONUNBUFFERED", None)
    for command, first in ((f"{script} | head -1", "0"), (f"{script} --help | sleep 0", "")):
        piped = f"{sys.executable} {command}; echo ${{PIPESTATUS[0]}}"
        done = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, env=place, check=True)
        assert (done.stdout.split(), done.stderr) == ([*first.split(), "141"], "")


def test_a_word_that_is_no_utf8_is_a_line(capsys):
    assert call(job, "--sources", "\udcff") == 2
    assert "can't encode character" in capsys.readouterr().err


def test_a_text_that_looks_like_a_comment_is_one(capsys):
    def named(*, name: str | None = None):
        print(repr(name))

    for text in ("# end", "  # end", "#"):
        assert call(named, "--name", text) == 0
        assert capsys.readouterr().out == f"{text!r}\n"


@pytest.mark.parametrize(
    "arguments", [("--size", "many"), ("--unheard_of", 1), ("--rules.max_line_length", "x"), ("a",)]
)
def test_wrong_usage_is_two(capsys, arguments):
    assert call(job, *arguments) == 2
    usage, tip, error = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: ")
    assert tip.endswith(" --help")
    assert error.startswith("error: ")


@pytest.mark.parametrize(
    ("main", "arguments", "told"),
    [
        (train_model.main, ["--max_steps", "many"], '"max_steps": Expected one of int, null. Got value: many'),
        (
            train_model.main,
            ["--optimizer.learning_rate", "x"],
            '"optimizer.learning_rate": Expected float. Got value: x',
        ),
        (train_model.main, ["--resume", "no"], "\"resume\": Expected Literal['auto', 'never']. Got value: no"),
        ([inspect_shards.show, inspect_shards.find], ["show", "--row", "x"], '"row": Expected int. Got value: x'),
    ],
)
def test_a_wrong_type_is_told_in_a_line(capsys, main, arguments, told):
    assert call(main, *arguments) == 2
    assert capsys.readouterr().err.splitlines()[2:] == [f"error: Parser key {told}"]


@dataclass(frozen=True)
class Bounds:
    """Where it ends.

    Args:
        lower, upper: ends of the range,
            in metres.
        unit:
            100% of what `lower` counts: in.
    """

    lower: float = 0.0
    upper: float = 1.0
    unit: str = "m"


def limit(*, path: str, first: int = 0, last: int = 9, bounds: Bounds = Bounds()):
    """Cut it off.

    The rest stays.

    Args:
        path: what is cut.

        first, last: rows of it.
        bounds: of values.

    Raises:
        OSError: it is not there.
    """


def helped(capsys, main, *words):
    """What a help says before the options, its titles, and of each option."""
    assert call(main, *words, "--help") == 0
    intro, _, rest = capsys.readouterr().out.partition("\noptions:\n")
    options = dict(re.findall(r"^  (-.*?)(?: {2,}|\n {3,})(\S.*)$", rest, re.MULTILINE))
    assert len(options) == len(re.findall("^  -", rest, re.MULTILINE))
    told = {re.findall(r"--[\w.]+", option)[0].removeprefix("--"): text for option, text in options.items()}
    return intro, re.findall(r"^(\S.*):$", rest, re.MULTILINE), told


def test_help_tells_each_option_from_the_docstrings(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    for main, words in ((limit, []), ([limit, job], ["limit"])):
        intro, titles, told = helped(capsys, main, *words)
        assert intro.endswith("\nCut it off.\n\nThe rest stays.\n\nRaises:\n    OSError: it is not there.\n")
        assert titles == ["Where it ends"]
        assert told["path"] == "what is cut. (required, type: str)"
        assert told["first"] == "rows of it. (type: int, default: 0)"
        assert told["last"] == "rows of it. (type: int, default: 9)"
        assert told["bounds"] == "of values. CONFIG: a file of these settings."
        assert told["bounds.lower"] == "ends of the range, in metres. (type: float, default: 0.0)"
        assert told["bounds.upper"] == "ends of the range, in metres. (type: float, default: 1.0)"
        assert told["bounds.unit"] == "100% of what `lower` counts: in. (type: str, default: m)"


@pytest.mark.parametrize("module", [train_model, dedup, train, filter, measure], ids=lambda module: module.__name__)
def test_help_describes_every_option(capsys, monkeypatch, module):
    monkeypatch.setenv("COLUMNS", "1000")
    _, titles, told = helped(capsys, module.main)
    assert [name for name, text in told.items() if text.startswith(("(", "CONFIG"))] == []
    assert not any(title.startswith("<") for title in titles)


def test_faults_of_the_user_are_one_line_and_ours_keep_their_traceback(capsys):
    def fail_with(error):
        def main():
            raise error

        return main

    assert call(fail_with(ValueError("two\nlines"))) == 1
    assert capsys.readouterr().err == "error: two lines\n"
    assert call(fail_with(FileExistsError("out exists"))) == 1
    assert capsys.readouterr().err == "error: out exists\n"
    assert call(fail_with(KeyboardInterrupt())) == 130
    with pytest.raises(RuntimeError, match="ours"):
        run(fail_with(RuntimeError("ours")), [])


@pytest.fixture
def foreign(spark, tmp_path):
    """Signals of documents other than those of the workspace."""
    documents = write_documents(tmp_path / "inputs" / "documents", [document("x = 1")])
    measure.main(documents=documents, output=str(tmp_path / "inputs" / "signals"))
    return str(tmp_path / "inputs" / "signals")


def test_what_jobs_refuse(workspace, foreign, tmp_path, capsys):
    documents, verdicts = workspace.documents, workspace.verdicts
    plain = tmp_path / "plain"
    plain.mkdir()
    pq.write_table(pa.table({"text": ["a"]}), plain / "a.parquet")
    rest = {name: getattr(workspace, name) for name in ("documents", "verdicts", "duplicates")}
    others = [word for name, path in rest.items() for word in (f"--{name}", path)]
    refused = [
        (dedup, ["--documents", documents, "--threshold", 1.5], "threshold is 1.5; it must be in (0, 1]"),
        (dedup, ["--documents", documents, "--threshold", 0], "threshold is 0"),
        (dedup, ["--documents", tmp_path / "nowhere"], f"{tmp_path}/nowhere does not exist"),
        (dedup, ["--documents", plain], "lacks the column(s) content; it has text"),
        (dedup, ["--signals", foreign, "--verdicts", verdicts], f"{verdicts} was not made from the signals {foreign}"),
        (dedup, ["--signals", foreign, "--documents", documents], f"{foreign} was not made from the documents"),
        (dedup, ["--signals", documents], "holds documents (schema version 3); needed is signals"),
        (dedup, ["--documents", documents, "--verdicts", verdicts], "name --documents, or --signals, which"),
        (dedup, [], "name --documents, or --signals"),
        (measure, ["--documents", plain], "is not a table: no _manifest.json"),
        (
            filter,
            ["--signals", workspace.signals, "--rules.min_alphanumeric_share", 2],
            "min_alphanumeric_share is 2.0; it must be",
        ),
        (filter, ["--signals", documents], "holds documents (schema version 3); needed is signals"),
        (ledger, ["--signals", foreign, *others], f"{foreign} was not made from the documents {documents}"),
        (write_shards, ["--documents", documents, "--ledger", documents, "--tokenizer", plain], "was not made from"),
        (train, ["--sample", plain], "is not a finished table"),
        (train, ["--sample", documents], "is a table of documents; needed is a sample"),
        (train, ["--sample", documents, "--vocab_size", 9], "must be at least 2"),
    ]
    for module, arguments, told in refused:
        code = call(module.main, *arguments, "--output", tmp_path / "out")
        lines = [line for line in capsys.readouterr().err.splitlines() if " WARN " not in line]
        assert (code, len(lines)) == (1, 1), lines
        assert lines[0].startswith("error: ")
        assert told in lines[0]
        assert not (tmp_path / "out").exists()


def test_spark_submit_tells_the_same(tmp_path):
    documents = write_documents(tmp_path / "documents", [document("x = 1")])
    home = Path(sys.executable).parent
    done = subprocess.run(
        ["spark-submit", dedup.__file__, "--documents", documents, "--output", tmp_path / "out", "--threshold", "1.5"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": f"{home}{os.pathsep}{os.environ['PATH']}"},
        timeout=120,
        check=False,
    )
    told = done.stdout + done.stderr  # spark-submit passes on both streams of a script as one
    assert done.returncode == 1
    assert [line for line in told.splitlines() if "error" in line] == ["error: threshold is 1.5; it must be in (0, 1]"]
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()
