"""One row a file, one state each; counts that reconcile with every table, and a job that fails where they do not."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_corpus import ODD_FILES, table

from spark_jobs import ledger
from spark_jobs.rules.states import KEPT, counts_by_state, ledger_of
from spark_jobs.tables import CONTAMINATED, DUPLICATES, SIGNALS, VERDICTS, manifest


def rows_of(path):
    return {row["file_id"]: row for row in pq.read_table(path).to_pylist()}


def test_every_file_is_there_once_with_its_place(workspace):
    documents, rows = rows_of(workspace.documents), rows_of(workspace.ledger)
    files = {path.relative_to(workspace.corpus).as_posix() for path in workspace.corpus.rglob("*") if path.is_file()}
    assert len(pq.read_table(workspace.ledger)) == len(rows) == len(documents) == len(files)
    assert {row["path"] for row in rows.values()} == files
    for file_id, row in rows.items():
        assert all(row[name] == documents[file_id][name] for name in ("repo", "path", "language"))
        assert row["size"] == (workspace.corpus / row["path"]).stat().st_size
        with pq.ParquetFile(Path(workspace.documents) / row["part"]) as part:
            group = part.read_row_group(row["row_group"], columns=["file_id"])
        assert group.column("file_id")[row["row"]].as_py() == file_id


def test_counts_reconcile_with_every_table(workspace):
    rows, states = rows_of(workspace.ledger), manifest(workspace.ledger)["states"]
    assert sum(count["files"] for count in states.values()) == manifest(workspace.documents)["rows"]
    assert sum(count["bytes"] for count in states.values()) == sum(row["size"] for row in rows.values())
    for state, count in states.items():
        assert count["files"] == sum(row["state"] == state for row in rows.values())
    filtered = sum(count["files"] for state, count in states.items() if state.startswith("filtered: "))
    assert filtered == manifest(workspace.verdicts)["filtered"]
    duplicates = manifest(workspace.duplicates)
    assert states["exact copy"]["files"] == duplicates["exact"] >= 8
    assert states["near-duplicate"]["files"] == duplicates["rows"] - duplicates["exact"] >= 6


def test_odd_files_and_copies_are_in_the_states_that_they_were_made_for(workspace):
    by_path = {row["path"]: row for row in rows_of(workspace.ledger).values()}
    states = {path: row["state"] for path, row in by_path.items()}
    expected = {
        "odd/empty.py": "empty",
        "odd/nul.py": "binary",
        "odd/noise.py": "undecodable",
        "odd/long_line.py": "oversized",
        "odd/generated.py": "filtered: auto_generated",
        "odd/blank.py": "filtered: alphanumeric_share",
    }
    expected |= dict.fromkeys(
        ("odd/latin.py", "odd/wide.py", "odd/mark.py", "odd/line_ends.py", "odd/special.py"), KEPT
    )
    assert {path: states[path] for path in expected} == expected
    assert all(states[path].startswith("filtered") for path in ("odd/short.py", "odd/short_too.py"))
    assert set(ODD_FILES) <= set(states)
    for pairs, state in ((workspace.copies, "exact copy"), (workspace.near, "near-duplicate")):
        for original, copy in pairs.items():
            if not states[original].startswith("filtered") and not states[copy].startswith("filtered"):
                kept, removed = (original, copy) if states[original] == KEPT else (copy, original)
                assert (states[kept], states[removed]) == (KEPT, state)
                assert kept in by_path[removed]["evidence"]
                assert by_path[removed]["evidence"].startswith(
                    "of " if state == "exact copy" else ("0.", "1.0 similar")
                )


def test_every_state_and_which_goes_first(spark):
    number = [bytes([place] * 16) for place in range(8)]
    reasons = [("line_length", 2000.0, 1000.0), ("few_assignments", 1.0, 5.0)]
    signals = [
        {"file_id": number[0], "state": "undecodable", "size": 1},
        *({"file_id": one, "state": "decoded", "size": 10, "content_hash": one} for one in number[1:7]),
    ]
    verdicts = [{"file_id": one, "reasons": reasons if one == number[1] else []} for one in number[:7]]
    twin = {"kept_file_id": number[6], "kept_repo": "r", "kept_path": "kept.py"}
    duplicates = [
        {"file_id": number[1], "kind": "exact", "similarity": 1.0, **twin},
        {"file_id": number[2], "kind": "near", "similarity": 0.75, **twin},
        {"file_id": number[3], "kind": "exact", "similarity": 1.0, **twin},
        {"file_id": number[4], "kind": "near", "similarity": 0.71234567, **twin},
    ]
    contaminated = [
        {"file_id": one, "task": "HumanEval/0", "matched": "from typing"} for one in (number[1], number[2])
    ]
    rows = [(SIGNALS, signals), (VERDICTS, verdicts), (DUPLICATES, duplicates), (CONTAMINATED, contaminated)]
    found = ledger_of(*(table(spark, schema, values) for schema, values in rows))
    told = {bytes(row.file_id): (row.state, row.evidence) for row in found.collect()}
    name = f"r/kept.py ({number[6].hex()})"
    assert [told[one] for one in number[:7]] == [
        ("undecodable", "no content was read"),
        ("filtered: line_length", "line_length 2000.0 against 1000.0; few_assignments 1.0 against 5.0"),
        ("contaminated", "HumanEval/0: from typing"),
        ("exact copy", f"of {name}"),
        ("near-duplicate", f"0.7123 similar to {name}"),
        (KEPT, ""),
        (KEPT, ""),
    ]
    assert list(counts_by_state(found).items())[:2] == [
        (KEPT, {"files": 2, "bytes": 20}),
        ("contaminated", {"files": 1, "bytes": 10}),
    ]


def tampered(workspace, folder, change):
    """The duplicates with their rows changed behind the manifest's back."""
    shutil.copytree(workspace.duplicates, folder)
    for path in folder.glob("*.parquet"):
        path.unlink()
    for path in folder.glob(".*.crc"):
        path.unlink()
    duplicates = pq.read_table(workspace.duplicates)
    pq.write_table(pa.Table.from_pylist(change(duplicates.to_pylist()), duplicates.schema), folder / "rows.parquet")
    return str(folder)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (
            lambda rows: [{**rows[0], "kept_file_id": rows[1]["file_id"]}, *rows[1:]],
            "1 removed files name a file that",
        ),
        (lambda rows: [{**rows[0], "kept_file_id": bytes(16)}, *rows[1:]], "1 removed files name a file that"),
        (lambda rows: rows[1:], "rows for"),
        (lambda rows: [rows[0], *rows], "ids differ"),
    ],
)
def test_tables_that_do_not_reconcile_fail_the_job(workspace, tmp_path, change, told):
    given = {kind: getattr(workspace, kind) for kind in ("documents", "signals", "verdicts")}
    wrong = tampered(workspace, tmp_path / "duplicates", change)
    with pytest.raises(RuntimeError, match=f"does not reconcile: .*{told}"):
        ledger.main(**given, duplicates=wrong, output=str(tmp_path / "ledger"))
    assert not (tmp_path / "ledger").exists()
