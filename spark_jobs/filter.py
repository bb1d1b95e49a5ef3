"""signals -> verdicts: which rules each document breaks, with the value and the threshold."""

from typing import Literal

from spark_jobs.rules.thresholds import Rules
from tokenizer.command_line import run


def main(
    *,
    signals: str,
    output: str,
    profile: Literal["code", "prose", "none"] = "code",
    rules: Rules = Rules(),  # noqa: B008 - frozen
    overwrite: bool = False,
) -> None:
    """Judge every document by the rules of a profile. No content is read.

    Args:
        signals: table of signals, as measure writes it.
        output: folder of the verdicts.
        profile: code (CodeParrot's rules), prose (those that hold for prose) or none.
        rules: thresholds.
        overwrite: replace what lies there.
    """
    from dataclasses import asdict

    from pyspark.sql import functions as F

    from spark_jobs import tables
    from spark_jobs.rules.verdicts import verdicts_of
    from spark_jobs.session import start_session, step

    stage = tables.Stage(
        "verdicts",
        output,
        configuration={"profile": profile, "rules": asdict(rules)},
        inputs={"signals": signals},
        overwrite=overwrite,
    )
    if stage.done():
        return
    with stage, start_session("filter") as spark, step(spark, "filter: applying the rules"):
        verdicts = verdicts_of(tables.read(spark, signals, "signals"), rules, profile)
        counts = stage.write(verdicts, counts={"filtered": F.count_if(F.size("reasons") > 0)})
        print(f"filter: {counts['filtered']} of {counts['rows']} documents break a rule; verdicts in {output}")


if __name__ == "__main__":
    run(main)
