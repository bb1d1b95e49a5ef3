"""An evaluation as one self-contained HTML page, which needs no network and runs no script."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LANGUAGES = 25
_WIDTH, _HEIGHT = 720, 260
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1c2128; --quiet: #59636e; --line: #d8dee4; --panel: #f5f7f9;
  --own: #1a7f5a; --bar: #b9c6d4; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14181d; --ink: #e4e8ec; --quiet: #9aa5b1;
  --line: #343c45; --panel: #1d232a; --own: #3fb68b; --bar: #46566a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 28px 24px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 20px; margin: 40px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
p { margin: 6px 0 12px; max-width: 80ch; }
.quiet { color: var(--quiet); }
.advice { background: var(--panel); border-left: 4px solid var(--own); border-radius: 4px; padding: 10px 14px; }
.tiles { display: grid; grid-template-columns: repeat(3, 1fr); gap: 12px; margin: 18px 0; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 24px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--quiet); font-size: 13px; }
.wide { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14px; margin: 8px 0 16px; }
th, td { padding: 4px 8px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; color: var(--quiet); border-bottom-width: 2px; vertical-align: bottom; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.own td { font-weight: 650; background: var(--panel); }
td.best { color: var(--own); font-weight: 650; }
th.number { white-space: normal; }
.name { overflow-wrap: anywhere; min-width: 150px; }
code { font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: 12.5px;
  background: var(--panel); border: 1px solid var(--line); border-radius: 4px; padding: 0 4px; margin: 0 4px 3px 0;
  display: inline-block; unicode-bidi: isolate; overflow-wrap: anywhere; }
.bar { display: inline-block; height: 10px; border-radius: 2px; background: var(--bar); margin-right: 6px; }
.own .bar { background: var(--own); }
svg { display: block; width: 100%; max-width: 720px; height: auto; }
svg text { font-size: 13px; fill: var(--quiet); }
svg line { stroke: var(--line); }
svg polyline { fill: none; stroke: var(--own); stroke-width: 2; }
svg circle { fill: var(--own); }
@media (max-width: 700px) { .tiles { grid-template-columns: repeat(2, 1fr); } }
"""


def page(evaluated: Mapping[str, Any]) -> str:
    """The page; whatever comes from files or tokenizers is escaped."""
    found, held_out = evaluated["candidates"], evaluated["held_out"]
    title = f"{_printable(found[0]['name'])} on {held_out['files']:,} held-out files"
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>{title}</h1>",
        f'<p class="quiet">{held_out["bytes"] / 1e6:,.2f} MB of text that training did not see.</p>',
        f'<p class="advice">{_escaped(evaluated["advice"])}</p>',
        _tiles(found[0], evaluated["vocabulary"]),
        _side_by_side(found),
        _languages(found),
        _sweep(evaluated["sweep"]),
        _keywords(found),
        _indentation(found),
        _vocabulary(evaluated["vocabulary"]),
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _tiles(own: Mapping[str, Any], vocabulary: Mapping[str, Any]) -> str:
    whole = own["whole"]
    unused = vocabulary["never_used"]["entries"]
    tiles = (
        ("Bytes a token", f"{whole['bytes_a_token']:.2f}", f"{whole['tokens']:,} tokens"),
        ("Tokens a line", f"{whole['tokens_a_line']:.1f}", f"{whole['lines']:,} lines"),
        ("Words split", f"{whole['split_share']:.1%}", f"{whole['pieces_a_word']:.2f} pieces a word"),
        ("Indentation", f"{whole['indentation_share']:.1%}", "of the tokens hold nothing else"),
        ("Entries never used", f"{unused:,}", f"of {own['vocab_size']:,}, in the whole sample"),
        ("Files given back", f"{whole['files'] - whole['changed_files']:,}", f"of {whole['files']:,}, byte by byte"),
    )
    cells = (f'<div class="tile">{name}<b>{value}</b><span>{note}</span></div>' for name, value, note in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _side_by_side(found: Sequence[Mapping[str, Any]]) -> str:
    most = max(one["whole"]["bytes_a_token"] for one in found)
    rows = []
    for number, one in enumerate(found):
        whole, sums = one["whole"], _single(one)
        bar = f'<span class="bar" style="width:{60 * whole["bytes_a_token"] / most:.0f}px"></span>'
        cells = [
            f'<td class="name">[{number + 1}] {_printable(one["name"])}</td>',
            _number(f"{one['vocab_size']:,}"),
            f'<td class="number">{bar}{whole["bytes_a_token"]:.3f}</td>',
            *(
                f'<td class="number">{cell}</td>'
                for cell in (
                    f"{whole['tokens_a_line']:.1f}",
                    f"{whole['split_share']:.1%}",
                    f"{whole['pieces_a_word']:.2f}",
                    f"{whole['indentation_share']:.1%}",
                    f"{sums[0]} of {sums[1]}",
                    f"{one['never_used']:,}",
                    f"{whole['changed_files']:,}",
                )
            ),
        ]
        rows.append(f"<tr{' class=own' if not number else ''}>{''.join(cells)}</tr>")
    heads = (
        "Entries",
        "Bytes a token",
        "Tokens a line",
        "Words split",
        "Pieces a word",
        "Indentation",
        "Keywords",
    )
    return (
        "<h2>Side by side</h2>\n<p>A tokenizer with more bytes a token makes fewer tokens of a text. “Indentation” is "
        "the share of the tokens that are nothing else, “keywords” are those that are one token, “unused” entries "
        "that no held-out file needs, “changed” files that decoding does not give back.</p>\n"
        + _table(["Tokenizer"], [*heads, "Unused", "Changed"], rows)
    )


def _languages(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for language, own in list(found[0]["languages"].items())[:LANGUAGES]:
        rates = [one["languages"][language]["bytes_a_token"] for one in found]
        cells = [f"<td>{_escaped(language)}</td>", *(_number(f"{own[name]:,}") for name in ("files", "bytes"))]
        cells += [_number(f"{rate:.2f}", "best" if rate == max(rates) and len(rates) > 1 else "") for rate in rates]
        cells += [_number(f"{own['tokens_a_line']:.1f}"), _number(f"{own['split_share']:.1%}")]
        cells += [_number(f"{own['pieces_a_word']:.2f}"), _number(f"{own['indentation_share']:.1%}")]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    names = [f"[{number}]" for number in range(1, len(found) + 1)]
    heads = ["Files", "Bytes", *names, "Tokens a line", "Words split", "Pieces a word", "Indentation"]
    note = "<p>Bytes a token of each tokenizer, by its number above; the other figures are those of [1].</p>\n"
    return f"<h2>By language</h2>\n{note}" + _table(["Language"], heads, rows)


def _sweep(sweep: Sequence[Mapping[str, Any]]) -> str:
    if len(sweep) < 2:
        return ""
    xs = [math.log2(one["vocab_size"]) for one in sweep]
    rates = [one["bytes_a_token"] for one in sweep]
    low = math.floor(min(rates) * 2) / 2
    high = max(math.ceil(max(rates) * 2) / 2, low + 0.5)
    points = [
        (50 + (x - xs[0]) / (xs[-1] - xs[0]) * (_WIDTH - 90), 20 + (high - rate) / (high - low) * (_HEIGHT - 60))
        for x, rate in zip(xs, rates, strict=True)
    ]
    drawn = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Bytes a token by size of the vocabulary">']
    for level in (low, (low + high) / 2, high):
        y = 20 + (high - level) / (high - low) * (_HEIGHT - 60)
        drawn.append(
            f'<line x1="50" x2="{_WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}"/><text x="4" y="{y + 4:.1f}">{level:g}</text>'
        )
    drawn.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
    for (x, y), one in zip(points, sweep, strict=True):
        drawn.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4"/><text x="{x:.1f}" y="{y - 10:.1f}" text-anchor="middle">'
            f'{one["bytes_a_token"]:.2f}</text><text x="{x:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">'
            f"{one['vocab_size']:,}</text>"
        )
    note = (
        "<p>Bytes a token on the held-out files with the first merges alone: what each doubling of entries gains.</p>"
    )
    return f"<h2>Size of the vocabulary</h2>\n{note}\n{''.join(drawn)}</svg>"


def _keywords(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for language, own in found[0]["keywords"].items():
        cells = [f"<td>{_escaped(language)}</td>"]
        for kind in ("keywords", "builtins"):
            cells.append(_number(f"{own[kind]['whole']} of {own[kind]['words']}"))
        split = [*own["keywords"]["split"], *own["builtins"]["split"]]
        others = [f"{sum(each['whole'] for each in one['keywords'][language].values())}" for one in found[1:]]
        rows.append(f"<tr>{''.join(cells)}<td>{_codes(split)}</td>{''.join(map(_number, others))}</tr>")
    names = [f"[{number}]" for number in range(2, len(found) + 1)]
    note = "<p>Words that are one token, alone or after a space; of the others, by number, both kinds together.</p>\n"
    return f"<h2>Keywords and builtins</h2>\n{note}" + _table(
        ["Language"], ["Keywords", "Builtins"], rows, after=["In several tokens"], numbers_after=names
    )


def _indentation(found: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for text in found[0]["indentation"]:
        name = f"{len(text)} {'tab' if text[0] == chr(9) else 'space'}{'s' if len(text) > 1 else ''}"
        cells = "".join(_number(f"{one['indentation'][text]}") for one in found)
        rows.append(f"<tr><td>{name}</td>{cells}</tr>")
    names = [f"[{number}]" for number in range(1, len(found) + 1)]
    return "<h2>What an indentation costs</h2>\n<p>Tokens before the first word of a line.</p>\n" + _table(
        ["Indentation"], names, rows
    )


def _vocabulary(odd: Mapping[str, Any]) -> str:
    kinds = (
        ("never_used", "Never used", "in the whole sample, as a token of its own; single bytes are not counted"),
        (
            "under_trained",
            "Hardly used",
            f"fewer than {odd['few_uses']} times in the sample: a model learns little of it",
        ),
        ("of_one_repository", "Of one repository alone", "often used, but by one project: its own names"),
        ("names", "Names of authors", "used mostly in lines about authors and copyright"),
        ("secrets", "Look like secrets", "the form of a mail address, a key, or letters as chance makes them"),
    )
    rows = [
        f"<tr><td><b>{title}</b><br><span class=quiet>{note}</span></td>{_number(format(odd[kind]['entries'], ','))}"
        f"<td>{_codes(word for word, _ in odd[kind]['examples'])}</td></tr>"
        for kind, title, note in kinds
    ]
    return "<h2>The vocabulary</h2>\n" + _table(["Entries"], ["Number"], rows, after=["Some, the most used first"])


def _single(one: Mapping[str, Any]) -> tuple[int, int]:
    """Keywords and builtins of all languages that are one token, and all of them."""
    kinds = [kind for each in one["keywords"].values() for kind in each.values()]
    return sum(kind["whole"] for kind in kinds), sum(kind["words"] for kind in kinds)


def _table(
    left: Sequence[str],
    numbers: Sequence[str],
    rows: Sequence[str],
    after: Sequence[str] = (),
    numbers_after: Sequence[str] = (),
) -> str:
    heads = [f"<th>{name}</th>" for name in left] + [f'<th class="number">{name}</th>' for name in numbers]
    heads += [f"<th>{name}</th>" for name in after] + [f'<th class="number">{name}</th>' for name in numbers_after]
    return f'<div class="wide"><table>\n<tr>{"".join(heads)}</tr>\n' + "\n".join(rows) + "\n</table></div>"


def _number(text: str, kind: str = "") -> str:
    return f'<td class="number {kind}">{text}</td>' if kind else f'<td class="number">{text}</td>'


def _codes(words: Iterable[str]) -> str:
    return "".join(f"<code>{_shown(word)}</code>" for word in words) or '<span class="quiet">none</span>'


def _shown(text: str) -> str:
    """A token with its blanks made visible, safe to print."""
    seen = text.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    return _printable(seen)


def _printable(text: str) -> str:
    return _escaped("".join(letter if letter.isprintable() else "�" for letter in text))


def _escaped(text: str) -> str:
    return html.escape(text)
