"""Figures -> the page: the template, how numbers are written, and writing the file whole or not at all."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from spark_jobs.reporting import charts
from spark_jobs.tables import Storage

TEMPLATES = ("report_page.html", "report_charts.html", "report_style.html")
MARK = '<meta name="corella-fingerprint" content="{}">'


def render(figures: Mapping[str, Any], fingerprint: str) -> str:
    """The page as HTML. Everything that comes from tables is escaped: paths and contents are anyone's."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": count,
        "size": size,
        "share": share,
        "short": short,
        "figure": figure,
        "clock": clock,
        "pretty": lambda value: json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str),
    }
    mark = Markup(MARK).format(fingerprint)
    return environment.get_template(TEMPLATES[0]).render(**figures, **_drawings(figures), mark=mark)


def _drawings(figures: Mapping[str, Any]) -> dict[str, Any]:
    total, run = figures["total"], figures["run"]
    splits = [(split, sums["files"], sums["bytes"]) for split, sums in figures["splits"].items()]
    near = figures["similarities"]
    return {
        "funnel_chart": charts.funnel_chart((total["files"], total["bytes"]), figures["steps"], splits),
        "histogram_chart": charts.histogram_chart(near) if any(files for _, _, files in near.bins) else None,
        "loss_chart": charts.loss_chart(run) if run else None,
    }


def templates() -> str:
    """The text of all templates: a page of an older one is not up to date."""
    return "".join(_template(name) for name in TEMPLATES)


def _template(name: str) -> str:
    return files("spark_jobs").joinpath(name).read_text(encoding="utf-8")


def stands(output: str, fingerprint: str) -> bool:
    """Whether the page stands already, made from the same inputs; FileExistsError if another file does."""
    storage = Storage(output)
    if not storage.exists():
        return False
    if MARK.format(fingerprint).encode() in storage.read("")[:4096]:
        return True
    raise FileExistsError(f"{output} exists and was made from something else; name another or --overwrite")


def write(output: str, page: str) -> None:
    """Write the page: first beside its place, then into it."""
    storage = Storage(output)
    folder, _, name = storage.root.rpartition("/")
    partial = f"{folder}/.{name}.partial"
    storage.filesystem.create_dir(folder, recursive=True)
    with storage.filesystem.open_output_stream(partial) as file:
        file.write(page.encode("utf-8", "replace"))
    storage.filesystem.move(partial, storage.root)


def count(number: float) -> str:
    """A whole number with separators."""
    return f"{number:,.0f}"


def size(size_bytes: float) -> str:
    """Bytes in decimal units, three figures."""
    number, unit = _scaled(size_bytes, ("B", "kB", "MB", "GB", "TB", "PB"))
    return f"{number} {unit}"


def short(number: float) -> str:
    """A count of three figures with K, M, B or T (thousand to trillion)."""
    return " ".join(_scaled(number, ("", "K", "M", "B", "T"))).strip()


def _scaled(number: float, units: Sequence[str]) -> tuple[str, str]:
    """A number over the power of 1000 that leaves it below 1000, and the unit of that power."""
    power = 0
    while number >= 999.5 and power < len(units) - 1:
        number, power = number / 1000, power + 1
    return (f"{number:.3g}" if power and number < 999.5 else f"{number:,.0f}"), units[power]


def share(part: float, whole: float) -> str:
    """A part in per cent of the whole; less than a tenth is said so."""
    percent = 100 * part / whole if whole else 0.0
    return "< 0.1 %" if 0 < percent < 0.05 else f"{percent:.1f} %"


def figure(value: float, digits: int = 6) -> str:
    """A number of up to so many significant figures, with separators."""
    return f"{value:,.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d} h" if hours else f"{minutes}:{rest:02d} min"
