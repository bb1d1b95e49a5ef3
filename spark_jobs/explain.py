"""One file's story: what became of it, why, and how one can see that."""

import shutil
import sys

from tokenizer.command_line import run


def main(*, workspace: str, path: str | None = None, file_id: str | None = None, lines: int = 60) -> int:
    """Tell why a file is, or is not, in the data. Several that match are listed instead; exit 1 unless one does.

    Args:
        workspace: folder of the tables; shards are searched if they are there.
        path: the file's path, alone or after its repository, or any part of both.
        file_id: its id in hexadecimal digits, or the first of them.
        lines: most lines of a comparison with the file that it was removed for.
    """
    from spark_jobs.reporting import lookup, story
    from spark_jobs.reporting.workspace import Workspace
    from spark_jobs.session import start_session

    if path is None and file_id is None:
        raise ValueError("name a file with --path or --file_id")
    if lines < 0:
        raise ValueError(f"lines is {lines}; it must be at least 0")
    with start_session("explain") as spark:
        folder = Workspace(workspace)
        width = max(80, shutil.get_terminal_size((120, 24)).columns)
        found = lookup.candidates(folder.table(spark, "ledger"), path, file_id)
        if not found:
            wanted = " and ".join(repr(text) for text in (path, file_id) if text is not None)
            print(f"no file of {workspace} matches {wanted}", file=sys.stderr)
            return 1
        if len(found) > 1:
            print("\n".join(story.listed(found)))
            return 1
        facts = lookup.facts_of(spark, folder, found[0])
        print("\n".join(story.told(facts, lines, width)))
        return 0


if __name__ == "__main__":
    run(main)
