"""An evaluation as lines of text."""

from collections.abc import Mapping
from typing import Any

LANGUAGES = 20
COLUMNS = (
    "entries",
    "bytes/token",
    "tokens/line",
    "words split",
    "pieces/word",
    "indent",
    "keywords",
    "unused",
    "changed",
)


def table(evaluated: Mapping[str, Any]) -> str:
    """The tokenizers side by side, then bytes a token by language, then sizes and what is odd in the vocabulary."""
    held_out, found = evaluated["held_out"], evaluated["candidates"]
    lines = [f"On {held_out['files']:,} held-out files, {held_out['bytes'] / 1e6:,.2f} MB:", ""]
    lines += _sideways([("tokenizer", COLUMNS), *((one["name"], _cells(one)) for one in found)])
    lines += ["", "Bytes a token by language, and what the first makes of it:", ""]
    names = [f"[{number}]" for number in range(1, len(found) + 1)]
    first = found[0]["languages"]
    rows = [("language", ("files", *names, "tokens/line", "words split", "pieces/word"))]
    for language, own in list(first.items())[:LANGUAGES]:
        rates = [f"{one['languages'][language]['bytes_a_token']:.2f}" for one in found]
        figures = (f"{own['tokens_a_line']:.1f}", f"{own['split_share']:.1%}", f"{own['pieces_a_word']:.2f}")
        rows.append((language, (f"{own['files']:,}", *rates, *figures)))
    lines += _sideways(rows)
    lines += ["", "Sizes of the vocabulary:", ""]
    sizes = [(f"{one['vocab_size']:,}", (f"{one['bytes_a_token']:.2f}",)) for one in evaluated["sweep"]]
    lines += _sideways([("entries", ("bytes/token",)), *sizes])
    odd = evaluated["vocabulary"]
    kinds = {
        "never used": "never_used",
        f"used fewer than {odd['few_uses']} times": "under_trained",
        "of one repository alone": "of_one_repository",
        "names of authors": "names",
        "look like secrets": "secrets",
    }
    counted = ", ".join(f"{odd[kind]['entries']:,} {title}" for title, kind in kinds.items())
    return "\n".join([*lines, "", f"Entries, over {odd['tokens']:,} tokens of the sample: {counted}.", ""])


def _cells(one: Mapping[str, Any]) -> tuple[str, ...]:
    whole = one["whole"]
    words, split = (sum(kind[of] for each in one["keywords"].values() for kind in each.values()) for of in _KEYS)
    return (
        f"{one['vocab_size']:,}",
        f"{whole['bytes_a_token']:.3f}",
        f"{whole['tokens_a_line']:.2f}",
        f"{whole['split_share']:.1%}",
        f"{whole['pieces_a_word']:.3f}",
        f"{whole['indentation_share']:.1%}",
        f"{split}/{words}",
        f"{one['never_used']:,}",
        f"{whole['changed_files']:,}",
    )


_KEYS = ("words", "whole")


def _sideways(rows: list[tuple[str, tuple[str, ...]]]) -> list[str]:
    """Rows with their first column to the left and the others to the right, each as wide as it must be."""
    name_width = min(60, max(len(name) for name, _ in rows))
    widths = [max(len(cells[column]) for _, cells in rows) for column in range(len(rows[0][1]))]
    return [
        f"  {name[-name_width:]:<{name_width}}"
        + "".join(f"  {cell:>{w}}" for cell, w in zip(cells, widths, strict=True))
        for name, cells in rows
    ]
