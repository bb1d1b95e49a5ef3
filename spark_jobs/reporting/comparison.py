"""Two texts side by side: the lines in which they differ."""

import difflib
from collections.abc import Iterator, Sequence

# difflib takes a time that grows with the product of the numbers of lines.
MAX_LINES = 4000


def printable(text: str) -> str:
    """A line as a terminal may safely show it: control characters, which could steer it, become �."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text.expandtabs(4))


def side_by_side(left: str, right: str, *, most: int, width: int) -> list[str]:
    """The differing lines of two texts, at most `most`, each with its number, within `width` characters.

    Runs of equal lines are told by their number. Lines beyond MAX_LINES are not compared, which is said.
    """
    left_lines, right_lines = left.splitlines(), right.splitlines()
    rows = list(_rows(left_lines[:MAX_LINES], right_lines[:MAX_LINES], (width - 17) // 2))
    if not rows:
        return ["the lines are equal" if left != right else "the contents are the same, byte by byte"]
    shown = rows[:most]
    if len(rows) > most:
        shown.append(f"... {len(rows) - most:,} more lines of this comparison")
    if max(len(left_lines), len(right_lines)) > MAX_LINES:
        shown.append(f"... the lines after {MAX_LINES:,} were not compared")
    return shown


def _rows(left: Sequence[str], right: Sequence[str], width: int) -> Iterator[str]:
    """Rows of differing lines, and one of dots for each run of equal ones; none at all if nothing differs."""
    codes = difflib.SequenceMatcher(None, left, right).get_opcodes()
    if all(code[0] == "equal" for code in codes):
        return
    for tag, left_from, left_to, right_from, right_to in codes:
        if tag == "equal":
            yield f"{'⋯':>5} {left_to - left_from:,} equal lines"
            continue
        for number in range(max(left_to - left_from, right_to - right_from)):
            cells = [
                _cell(lines, first + number, last, width)
                for lines, first, last in ((left, left_from, left_to), (right, right_from, right_to))
            ]
            yield " │ ".join(cells).rstrip()


def _cell(lines: Sequence[str], at: int, end: int, width: int) -> str:
    if at >= end:
        return " " * (width + 6)
    text = printable(lines[at][: 2 * width])
    text = text if len(text) <= width else text[: width - 1] + "…"
    return f"{at + 1:>5} {text:<{width}}"
