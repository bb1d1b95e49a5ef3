"""The rules over what was measured: column expressions, so that changing a threshold rereads no content.

The rules and defaults of profile `code` are CodeParrot's (huggingface/transformers,
examples/research_projects/codeparrot, preprocessing.py and arguments.py).
"""

from dataclasses import dataclass

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from spark_jobs.rules.thresholds import Rules

PROFILES = ("code", "prose", "none")


@dataclass(frozen=True)
class Rule:
    """One rule: the condition that removes a file, and the value and threshold that it is recorded with."""

    name: str
    broken: Column
    value: Column
    threshold: float


def verdicts_of(signals: DataFrame, rules: Rules, profile: str) -> DataFrame:
    """signals -> VERDICTS: for every document all the rules that it breaks. Documents without content break none."""
    if profile not in PROFILES:
        raise ValueError(f"profile {profile!r} is unknown; there are {', '.join(PROFILES)}")
    reasons = [
        F.when(rule.broken, F.struct(F.lit(rule.name).alias("rule"), *_evidence(rule)))
        for rule in rules_of(rules, profile)
    ]
    no_reason = F.array().cast("array<struct<rule:string,value:double,threshold:double>>")
    broken = F.filter(F.array(*reasons), lambda reason: reason.isNotNull()) if reasons else no_reason
    return signals.select("file_id", broken.alias("reasons"))


def _evidence(rule: Rule) -> list[Column]:
    return [rule.value.cast("double").alias("value"), F.lit(float(rule.threshold)).alias("threshold")]


def rules_of(rules: Rules, profile: str) -> list[Rule]:
    """The rules of a profile, in the order in which the first broken one names a file's state."""
    if profile == "none":
        return []
    share = F.col("alphanumeric_share")
    both = [
        Rule("auto_generated", F.col("auto_generated_head"), F.col("auto_generated_head").cast("int"), 0),
        Rule("alphanumeric_share", share < rules.min_alphanumeric_share, share, rules.min_alphanumeric_share),
    ]
    return both if profile == "prose" else [*_line_rules(rules), *both, *_python_rules(rules)]


def _line_rules(rules: Rules) -> list[Rule]:
    longest, mean = F.col("longest_line"), F.col("mean_line_length")
    return [
        Rule("line_length", longest > rules.max_line_length, longest, rules.max_line_length),
        Rule("mean_line_length", mean > rules.max_mean_line_length, mean, rules.max_mean_line_length),
    ]


def _python_rules(rules: Rules) -> list[Rule]:
    python = F.col("language") == "Python"
    words = F.greatest("config_words", "test_words")
    allowed = F.floor(F.col("newlines") * rules.config_or_test_share)
    head = F.col("config_or_test_head")
    share = words / F.greatest(F.col("newlines"), F.lit(1))
    assignments = F.col("assignments")
    return [
        Rule(
            "config_or_test",
            python & (head | (words > allowed)) & (_draw("config_or_test") < rules.config_or_test_drop),
            F.when(head, 1.0).otherwise(share),  # the first lines say what all the others are
            rules.config_or_test_share,
        ),
        Rule(
            "no_keywords",
            python & (F.col("keywords") == 0) & (_draw("no_keywords") < rules.no_keywords_drop),
            F.col("keywords"),
            1,
        ),
        Rule("few_assignments", python & (assignments < rules.min_assignments), assignments, rules.min_assignments),
    ]


def _draw(rule: str) -> Column:
    """A number in [0, 1) that depends on the file and the rule alone, where CodeParrot draws at random."""
    return (F.xxhash64(F.lit(rule), F.col("file_id")).bitwiseAND(F.lit((1 << 24) - 1))) / float(1 << 24)
