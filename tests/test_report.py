"""The report tells what plain Python counts, is safe to open, and is not written when the tables disagree."""

import html
import json
import math
import re
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext

import pytest
from pyspark.sql import Row
from small_shards import make_tokenizer
from small_workspace import FILES, HOSTILE, File, make_workspace, write_shards

from spark_jobs import explain, report, tables
from spark_jobs.reporting import charts, page, training_run, units
from spark_jobs.reporting.contents import figures_of
from spark_jobs.reporting.figures import held_out_repositories, summed_up
from spark_jobs.reporting.workspace import Workspace
from tokenizer.inspect_shards import forget
from tokenizer.shards import SPLITS


@pytest.fixture(scope="module")
def workspace(spark, tmp_path_factory):
    folder = make_workspace(spark, tmp_path_factory.mktemp("report") / "workspace")
    (folder / "run").mkdir()
    rows = [{"step": step, "loss": 9 / step, "tokens": 16 * step, "seconds": 1.0} for step in range(1, 9)]
    rows[-1] |= {"validation_loss": 1.25, "perplexity": math.exp(1.25), "bits_per_byte": 0.875}
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "run" / "metrics.jsonl").write_text(lines + '{"step": 9, "lo')
    sample = {"prompt": "def f(", "completion": "a):\n    return '<script>\ud800'\n"}
    (folder / "run" / "completions.jsonl").write_text(json.dumps(sample))
    return folder


@pytest.fixture
def write_report(spark, monkeypatch):
    """The job's main within the session of the tests."""
    monkeypatch.setattr("spark_jobs.session.start_session", lambda _: nullcontext(spark))
    return lambda workspace, output, **options: report.main(workspace=str(workspace), output=str(output), **options)


@pytest.fixture(scope="module")
def figures(spark, workspace):
    return figures_of(spark, Workspace(str(workspace)))


def rows_of(text: str) -> list[list[str]]:
    """The cells of all table rows, as text."""
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", text, re.S)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.S) for row in rows]
    return [[html.unescape(re.sub("<[^>]*>", "", cell)).strip() for cell in row] for row in cells]


def test_figures_are_those_of_plain_python(figures):
    states = Counter(file.state for file in FILES)
    sizes = Counter()
    for file in FILES:
        sizes[file.state] += file.size
    assert {state: sums["files"] for state, sums in figures["states"].items()} == states
    assert {state: sums["bytes"] for state, sums in figures["states"].items()} == sizes
    assert figures["total"] == {
        "files": len(FILES),
        "bytes": sum(file.size for file in FILES),
        "tokens": sum(file.tokens for file in FILES),
    }
    assert figures["splits"]["train"] == {"files": 2, "bytes": 800, "tokens": 100}
    assert figures["splits"]["validation"] == {"files": 2, "bytes": 270, "tokens": 16}
    assert {row["language"]: (row["files"], row["kept"]["files"]) for row in figures["languages"]} == {
        "Python": (len(FILES) - 1, 3),
        "Markdown": (1, 1),
    }
    rules = {row.rule: (row.threshold, row.files, row.alone) for row in figures["rules"]}
    assert rules == {"line_length": (1000, 2, 1), "few_assignments": (5, 2, 1)}
    assert figures["held_out"]["repositories"] == 1
    assert [row.repo for row in figures["held_out"]["largest"]] == ["b"]


def test_all_that_is_not_trained_on_is_held_out(spark):
    places = spark.createDataFrame(
        [(b"1", "test", 5), (b"2", "train", 7), (b"3", "validation", 6)], "file_id binary, split string, tokens long"
    )
    ledger = spark.createDataFrame(
        [(b"1", "a", 1), (b"2", "b", 1), (b"3", "c", 1)], "file_id binary, repo string, size long"
    )
    repositories, largest = held_out_repositories(ledger, places)
    assert (repositories, [row.repo for row in largest]) == (2, ["c", "a"])
    rows = [Row(state="kept", language="C", split=split, files=1, bytes=2, tokens=3) for split in sorted(SPLITS)]
    assert list(summed_up(rows)["splits"]) == list(SPLITS)


def test_funnel_loses_file_by_file_what_is_not_kept(figures):
    left = len(FILES)
    for step in figures["steps"]:
        left -= sum(file.state == step.state for file in FILES)
        assert step.files_left == left
    assert left == figures["kept"]["files"] == 4
    assert [step.stage for step in figures["steps"]] == sorted(
        (step.stage for step in figures["steps"]), key=["ingest", "filter", "decontaminate", "dedup"].index
    )


def test_clusters_and_similarities(figures):
    (cluster,) = figures["clusters"]
    assert (cluster.path, cluster.removed, cluster.removed_bytes) == ("leader.py", 3, 500 + 480 + 470)
    assert [member.similarity for member in cluster.members] == [0.8125, 0.95, 1.0]
    filled = [(low, high) for low, high, files in figures["similarities"].bins if files]
    assert all(low <= value < high for (low, high), value in zip(filled, (0.8125, 0.95), strict=True))


def test_page_tells_the_counts_and_is_safe(figures):
    text = page.render(figures, "0" * 32)
    rows = rows_of(text)
    left = units.size(sum(file.size for file in FILES) - 44 - 17_000)
    assert ["filter", "filtered: line_length", "−2", "15.4 %", "−17.0 kB", "9", left] in rows
    assert ["train", "1", "2", "800 B", "100", "8"] in rows
    assert ["line_length", "1,000", "2,000", "2", "2", "1"] in rows
    assert [HOSTILE in cell for row in rows for cell in row].count(True) == 1
    assert "<script" not in text.lower()
    assert not re.search(r"(src|href|url)\s*[=(]|https?://|@import", text)


def test_page_tells_the_run(figures):
    text = page.render(figures, "0" * 32)
    for tile in ("Held-out loss</span><b>1.25<", "Perplexity</span><b>3.49<", "Bits per byte</span><b>0.875<"):
        assert tile in text
    assert "<pre><b>def f(</b>a):\n    return &#39;&lt;script&gt;" in text
    assert text.count("<circle") == 2
    assert "8 steps over 128 tokens" in text


EVALUATION = {
    "configuration": {"tokenizer_fingerprint": "tokenizer"},
    "held_out": {"files": 3, "bytes": 1200},
    "advice": "Advice: train one. <b> needs 9.0% fewer tokens.",
    "candidates": [
        {
            "name": HOSTILE,
            "vocab_size": 32768,
            "whole": numbers,
            "languages": {"Python": numbers},
            "keywords": {"Python": {"keywords": {"words": 35, "whole": 33}, "builtins": {"words": 70, "whole": 61}}},
            "indentation": {" ": 1, "    ": 1, "        ": 2, "\t": 1},
        }
        for tokens in (400, 500)
        for numbers in [
            {"bytes_a_token": 1200 / tokens, "tokens": tokens, "tokens_a_line": 4.0, "words": 100, "split_words": 25}
            | {"pieces_a_word": 1.5, "indentation_tokens": 8, "changed_files": 0, "files": 3}
        ]
    ],
    "sweep": [{"vocab_size": 16384, "bytes_a_token": 2.75}, {"vocab_size": 32768, "bytes_a_token": 3.0}],
    "vocabulary": {"few_uses": 20}
    | {kind: {"entries": 7} for kind in ("never_used", "under_trained", "of_one_repository", "names", "secrets")},
}


def test_page_tells_the_evaluation_and_is_safe(figures):
    assert "The tokenizer" not in page.render(figures, "0" * 32)
    text = page.render({**figures, "evaluation": EVALUATION}, "0" * 32)
    assert "Advice: train one. &lt;b&gt; needs 9.0% fewer tokens." in text
    rows = rows_of(text)
    assert [f"[1] {HOSTILE}", "32,768", "3.00", "4.0", "25.0 %", "1.50", "2.0 %", "0"] in rows
    assert ["Python", "3", "3.00", "2.40", "4.0", "25.0 %"] in rows
    assert ["Python", "33 of 35", "61 of 70", "33 of 35", "61 of 70"] in rows
    assert "vocabulary: 2.75 with 16,384 entries, 3.00 with 32,768 entries." in text
    assert "indentation costs: 1 for 4 blanks, 2 for 8 blanks, 1 for 1 tab(s)." in text
    assert "<script" not in text.lower()
    assert not re.search(r"(src|href|url)\s*[=(]|https?://|@import", text)


def test_evaluation_of_another_tokenizer_is_refused(workspace, write_report, tmp_path):
    folder = shutil.copytree(workspace, tmp_path / "evaluated")
    (folder / "evaluation").mkdir()
    record = folder / "evaluation" / "evaluation.json"
    record.write_text(json.dumps(EVALUATION))
    write_report(folder, tmp_path / "report.html")
    assert "needs 9.0% fewer tokens" in (tmp_path / "report.html").read_text()
    record.write_text(json.dumps(EVALUATION | {"configuration": {"tokenizer_fingerprint": "other"}}))
    with pytest.raises(ValueError, match="is not of the tokenizer of"):
        write_report(folder, tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_report_that_stands_is_done_and_another_is_refused(workspace, write_report, tmp_path, capsys):
    output = tmp_path / "report.html"
    output.write_text("something else")
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_report(workspace, output)
    write_report(workspace, output, overwrite=True)
    written = output.stat().st_mtime_ns
    write_report(workspace, output)
    assert output.stat().st_mtime_ns == written
    assert "already done" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


TWICE = ("documents", "verdicts", "duplicates", "ledger")
KEPT = [file for file in FILES if file.state == "kept"]
DAMAGES = {
    "a file is in no shard": lambda folder: write_shards(folder, KEPT[1:]),
    "a stranger is in a shard": lambda folder: write_shards(folder, [*KEPT[1:], File("a", "stranger.py", tokens=70)]),
    "a file is in a shard twice": lambda folder: write_shards(folder, [*KEPT, KEPT[0]]),
    "a repository is on both sides": lambda folder: write_shards(folder, KEPT, held_out=("held.py",)),
    **{f"{kind} counted twice": lambda folder, kind=kind: repeat(folder / kind) for kind in TWICE},
}


def repeat(table):
    rows = next(table.glob("*.parquet"))
    shutil.copy(rows, rows.with_name(f"again-{rows.name}"))


@pytest.mark.parametrize("damage", DAMAGES)
def test_tables_that_disagree_make_no_page(workspace, write_report, tmp_path, damage):
    folder = shutil.copytree(workspace, tmp_path / "damaged")
    DAMAGES[damage](folder)
    with pytest.raises((RuntimeError, ValueError), match=r"do not reconcile|was not made from the"):
        write_report(folder, tmp_path / "out" / "report.html")
    assert not (tmp_path / "out").exists()


def test_withdrawn_files_reconcile_and_are_told(workspace, write_report, tmp_path, capsys):
    folder = shutil.copytree(workspace, tmp_path / "withdrawn")
    assert make_tokenizer(folder / "shards" / "tokenizer").vocab_size == 300
    gone = next(file for file in FILES if file.path == "leader.py")
    forget(shards=str(folder / "shards"), file_ids=[gone.file_id.hex()])
    write_report(folder, tmp_path / "out" / "report.html")
    assert (tmp_path / "out" / "report.html").is_file()
    capsys.readouterr()
    assert explain.main(workspace=str(folder), path="leader.py") == 0
    receipt = folder / "shards" / "receipts" / "forget-0001.json"
    assert capsys.readouterr().out.splitlines()[-1] == f"It was withdrawn from the shards: {receipt}."


def test_tables_of_other_inputs_are_refused(workspace, write_report, tmp_path):
    folder = shutil.copytree(workspace, tmp_path / "other")
    manifest = folder / "documents" / tables.MANIFEST_NAME
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"configuration": {"sources": ["other"]}}))
    with pytest.raises(ValueError, match="was not made from the documents"):
        write_report(folder, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_workspace_without_shards_ends_with_the_kept_files(spark, write_report, tmp_path):
    folder = make_workspace(spark, tmp_path / "workspace", FILES[:5], shards=False)
    output = tmp_path / "new folder" / "report.html"
    write_report(folder, output)
    text = output.read_text()
    assert "From 5 files to 4 kept ones" in text
    assert "No file breaks a rule." in text
    assert "No file was removed as a duplicate." in text
    assert "Training" not in text


def test_run_of_hidden_tokens_has_a_loss_alone(figures):
    row = {"step": 1, "loss": 2.0, "tokens": 16, "seconds": 1.0, "validation_loss": 1.25}
    text = page.render({**figures, "run": training_run.run_of(json.dumps(row).encode())}, "0" * 32)
    assert "</b><span>nats a token, at step 1</span>" in text
    assert not re.search("Bits per byte|Perplexity", text)


def test_figures_that_were_not_finite_are_left_out():
    rows = [{"step": step, "loss": 2.0 / step, "tokens": 16 * step, "seconds": 1.0} for step in (1, 2)]
    rows[0] |= {"validation_loss": 1.25}
    rows.append({"step": 3, "loss": None, "validation_loss": None, "tokens": 48, "seconds": 1.0})
    run = training_run.run_of("".join(json.dumps(row) + "\n" for row in rows).encode())
    assert (run.steps, run.training_loss, run.validation_loss) == (3, [(1, 2.0), (2, 1.0)], [(1, 1.25)])


def test_curve_is_thinned_to_means():
    points = [(float(step), float(step % 2)) for step in range(1000)]
    thin = training_run.thinned(points, 100)
    assert len(thin) == 100
    assert set(thin[0]) == {4.5, 0.5}
    assert training_run.thinned(points[:7], 100) == points[:7]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.8, 9.3), (0, 17), (5, 5), (0, 0), (0.7, 1), (1e-9, 1e9)])
def test_axis_covers_its_values_with_few_ticks(low, high):
    axis = charts.axis(low, high, 0, 100)
    assert axis.low <= low <= high <= axis.high
    assert 2 <= len(axis.ticks) <= 9


def test_numbers_are_written_for_people():
    assert [units.size(number) for number in (0, 999, 1000, 9994, 999_600, 12_340_000)] == [
        *("0 B", "999 B", "1.00 kB", "9.99 kB", "1.00 MB", "12.3 MB")
    ]
    assert [units.short(number) for number in (12, 54_402_913, 2e12)] == ["12", "54.4 M", "2.00 T"]
    assert [units.share(part, 3000) for part in (0, 1, 3000)] == ["0.0 %", "< 0.1 %", "100.0 %"]
    assert [units.clock(seconds) for seconds in (59.6, 3725)] == ["1:00 min", "1:02:05 h"]


@pytest.mark.parametrize("job", ["report", "explain"])
def test_help_starts_nothing_heavy(job):
    code = (
        f"import sys; sys.argv = ['{job}', '--help']\nfrom spark_jobs.{job} import main, run\n"
        "try: run(main)\nexcept SystemExit as end: assert not end.code\n"
        "assert not {'pyspark', 'jinja2', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
