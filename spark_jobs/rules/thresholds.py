"""Thresholds of the rules; apart from the rules because command lines show them before Spark is there."""

from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Rules:
    """Thresholds of the rules.

    Args:
        max_mean_line_length: mean length of a line, in characters.
        max_line_length: longest line, in characters.
        min_alphanumeric_share: share of the characters that are letters or digits.
        config_or_test_share: times that "config" or "test" may occur, as a share of the lines.
        config_or_test_drop: share of configuration and test files to drop, drawn by file id.
        no_keywords_drop: share of Python files without def, class, for and while to drop, drawn by file id.
        min_assignments: equals signs that a Python file needs.
    """

    max_mean_line_length: float = 100
    max_line_length: int = 1000
    min_alphanumeric_share: float = 0.25
    config_or_test_share: float = 0.05
    config_or_test_drop: float = 0.7
    no_keywords_drop: float = 0.7
    min_assignments: int = 5

    def __post_init__(self) -> None:
        for field in fields(self):
            value, is_share = getattr(self, field.name), "share" in field.name or "drop" in field.name
            if not 0 <= value <= (1 if is_share else float("inf")):
                bound = "within 0..1" if is_share else "at least 0"
                raise ValueError(f"rules.{field.name} is {value}; it must be {bound}")
