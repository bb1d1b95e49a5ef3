"""The one table that `make bench` prints: what was measured, what it has to be, and whether it is."""

from typing import NamedTuple


class Line(NamedTuple):
    """A figure; `bar` and `passed` are empty where nothing is asked of it."""

    part: str
    what: str
    measured: str
    bar: str = ""
    passed: bool | None = None

    @property
    def result(self) -> str:
        return {None: "", True: "PASS", False: "FAIL"}[self.passed]


def rendered(lines: list[Line]) -> str:
    """The lines in columns, under their names."""
    rows = [("part", "what", "measured", "bar", "result")]
    rows += [(line.part, line.what, line.measured, line.bar, line.result) for line in lines]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, tuple("-" * width for width in widths))
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def at_most(part: str, what: str, value: float, bar: float, form: str = "{:,.2f}", aside: str = "") -> Line:
    """A line that passes if the value is not above the bar; both are told in the same form."""
    return Line(part, what, form.format(value) + aside, "<= " + form.format(bar), value <= bar)


def at_least(part: str, what: str, value: float, bar: float, form: str = "{:,.2f}", aside: str = "") -> Line:
    """A line that passes if the value is not below the bar."""
    return Line(part, what, form.format(value) + aside, ">= " + form.format(bar), value >= bar)
