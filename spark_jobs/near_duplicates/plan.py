"""What a run of de-duplication is about to do: its inputs, checked, its settings, and what it will cost."""

from spark_jobs import storage, tables
from spark_jobs.near_duplicates.candidates import recall
from spark_jobs.near_duplicates.records import BAND_MEMBER, SKETCHED
from spark_jobs.near_duplicates.settings import BANDS, ROWS, Fingerprint, Settings


def documents_path(
    documents: str | None, signals: str | None, verdicts: str | None, contaminated: str | None, index: str | None
) -> str | None:
    """The path of the documents, which the signals know too; ValueError if the tables do not belong together.

    None only where a run has no new delivery: it withdraws files from what an index knows.
    """
    if signals is None:
        if verdicts is not None or contaminated is not None or (documents is None and index is None):
            raise ValueError("name --documents, or --signals, which --verdicts and --contaminated need too")
        return documents
    documents = documents or tables.require(signals, "signals")["documents"]
    assert documents is not None
    tables.require_made_from(signals, documents=documents)
    if verdicts is not None:
        tables.require_made_from(verdicts, signals=signals)
    if contaminated is not None:
        tables.require_made_from(contaminated, documents=documents)
    return documents


def fingerprint_of(signals: str | None, asked: Fingerprint) -> Fingerprint:
    """What the signals took of the texts, else what is asked for; ValueError if the two differ."""
    if signals is None:
        return asked
    scheme = tables.require(signals, "signals")["configuration"]["scheme"]
    found = Fingerprint.of_scheme(scheme, signals)
    if asked.strip_header and not found.strip_header:
        raise ValueError(f"{signals} was measured with headers; measure again with --fingerprint.strip_header")
    return found


def described(documents: str | None, settings: Settings) -> str:
    """Input, the chance of banding to see a pair by its similarity, and the bytes that will be shuffled."""
    threshold = settings.threshold
    curve = ", ".join(f"{recall(similarity):.4f} at {similarity}" for similarity in sorted({threshold, 0.7, 0.8, 0.9}))
    lines = [f"dedup: recall of {BANDS} bands x {ROWS} rows: {curve}"]
    if documents is not None:
        files = storage.parquet_files(documents, ["content"])
        size, rows = sum(file.size for file in files), storage.parquet_rows(documents)
        shuffled = rows * (BANDS * BAND_MEMBER.itemsize + 2 * SKETCHED.itemsize)
        lines.insert(0, f"dedup: {rows:,} rows in {len(files):,} file(s), {size / 1e6:,.1f} MB, in {documents}")
        lines.append(
            f"dedup: at most about {shuffled / 1e6:,.1f} MB of bands and sketches will be shuffled, and no content"
        )
    return "\n".join(lines)
