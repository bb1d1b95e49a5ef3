"""A workspace -> one self-contained HTML page: the funnel from files in to tokens out, duplicates, loss, samples."""

from tokenizer.command_line import run


def main(*, workspace: str, output: str, overwrite: bool = False) -> None:
    """Write the report of a workspace. Fails, and writes no page, if the counts of its tables do not reconcile.

    Args:
        workspace: folder of the tables documents, signals, verdicts, duplicates and ledger; shards and a training
            run are told of as far as they are there.
        output: the page, one HTML file that needs no network.
        overwrite: replace a page that was made from something else.
    """
    import xxhash

    from spark_jobs.reporting import page
    from spark_jobs.reporting.contents import figures_of
    from spark_jobs.reporting.workspace import Workspace
    from spark_jobs.session import start_session, step

    found = Workspace(workspace)
    fingerprint = xxhash.xxh3_128_hexdigest((found.fingerprint() + page.templates()).encode())
    if not overwrite and page.stands(output, fingerprint):
        print(f"report: already done, in {output}")
        return
    with start_session("report") as spark, step(spark, "report: adding up the tables"):
        figures = figures_of(spark, found)
    page.write(output, page.render(figures, fingerprint))
    print(f"report: {figures['total']['files']:,} files, {len(figures['checks'])} checks hold; {output}")


if __name__ == "__main__":
    run(main)
