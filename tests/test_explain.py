"""Explain tells the story of files in every state, lists what is ambiguous and says what is unknown."""

from contextlib import nullcontext

import pytest
from small_workspace import FILES, HOSTILE, make_workspace

from spark_jobs import explain
from spark_jobs.reporting.comparison import side_by_side


@pytest.fixture(scope="module")
def workspace(spark, tmp_path_factory):
    return str(make_workspace(spark, tmp_path_factory.mktemp("explain") / "workspace"))


@pytest.fixture
def session(spark, monkeypatch):
    monkeypatch.setattr("spark_jobs.session.start_session", lambda _: nullcontext(spark))


@pytest.fixture
def story(session, workspace, capsys):
    """Lines that explain prints for a path, and its exit code."""

    def ask(path=None, file_id=None):
        code = explain.main(workspace=workspace, path=path, file_id=file_id)
        return capsys.readouterr().out.splitlines(), code

    return ask


def id_of(path):
    return next(file.file_id for file in FILES if file.path == path).hex()


def test_kept_file(story):
    lines, code = story("leader.py")
    assert code == 0
    assert lines[0] == "leader.py"
    assert {"  source      archive.tar", "  size        500 bytes", "  licences    MIT"} <= set(lines)
    assert {"State: kept", "It breaks no rule.", "3 files were removed for it:"} <= set(lines)
    assert "  0.8125 near  near.py in c" in lines
    assert "Its 70 tokens are row 0 of train-00000-of-00001.arrow (500 B of text)." in lines


def test_held_out_file_has_its_own_row(story):
    lines, _ = story("notes.md")
    assert "0 files were removed for it." in lines
    assert "Its 5 tokens are row 1 of validation-00000-of-00001.arrow (70 B of text)." in lines


def test_filtered_file_names_every_rule(story):
    lines, code = story("wide.py")
    assert code == 0
    assert "State: filtered: line_length" in lines
    rules = lines[lines.index("Rules it breaks:") + 1 :][:2]
    assert rules == ["  line_length      2,000 against 1,000", "  few_assignments  1 against 5"]
    assert "  alphanumeric share   0.3" in lines


def test_exact_copy(story):
    lines, code = story("copy.py")
    assert code == 0
    assert "State: exact copy" in lines
    assert "  leader.py in a" in lines
    assert "the contents are the same, byte by byte" in lines


def test_near_duplicate_shows_the_lines_that_differ(story):
    lines, code = story("c/near.py")
    assert code == 0
    how = "with Jaccard similarity 0.8125 (by their sets of shingles)"
    assert f"It is a near-duplicate of a kept file, {how}:" in lines
    (different,) = [line for line in lines if "│" in line]
    assert [cell.split() for cell in different.split("│")] == [["3", "3�[31m"], ["3", "three"]]
    assert "    ⋯ 2 equal lines" in lines


def test_undecodable_file_has_no_measures(story):
    lines, code = story("broken.py")
    assert code == 0
    assert lines[lines.index("State: undecodable") + 1 :] == ["  no content was read"]


def test_contaminated_file_names_the_task(story):
    lines, _ = story("task.py")
    assert "State: contaminated" in lines
    assert "  task/1: x = 1" in lines


def test_several_are_listed_and_an_exact_path_or_an_id_decides(story):
    lines, code = story("near")
    assert code == 1
    assert lines[0] == "2 files match:"
    assert f"  {id_of('near.py')}  near-duplicate            near.py in c" in lines
    assert story("near.py")[0][0] == "near.py"
    assert story("near", id_of("near.py")[:12])[0][0] == "near.py"
    assert story(HOSTILE)[0][0] == HOSTILE


@pytest.mark.usefixtures("session")
def test_unknown_file_is_one_line(workspace, capsys):
    assert explain.main(workspace=workspace, path="no/such%file") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"no file of {workspace} matches 'no/such%file'\n"


@pytest.mark.parametrize("options", [{}, {"path": "x", "lines": -1}])
def test_faulty_questions_are_refused_before_spark_starts(workspace, options):
    with pytest.raises(ValueError, match=r"name a file|lines is -1"):
        explain.main(workspace=workspace, **options)


def test_id_must_be_hexadecimal(story):
    with pytest.raises(ValueError, match="hexadecimal"):
        story(file_id="xyz")


def test_comparison_is_bounded_and_as_wide_as_asked():
    left, right = ("\n".join(f"{side} {number} " + "wide " * 99 for number in range(500)) for side in "lr")
    rows = side_by_side(left, right, most=60, width=100)
    assert len(rows) == 61
    assert rows[-1] == "... 440 more lines of this comparison"
    assert max(map(len, rows)) <= 100


def test_comparison_of_texts_that_differ_in_line_ends():
    assert side_by_side("a\nb\n", "a\r\nb", most=9, width=80) == ["the lines are equal"]
