"""Figures -> the page: the template, and writing the file whole or not at all."""

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from spark_jobs.reporting import charts, units
from spark_jobs.reporting.comparison import printable
from spark_jobs.storage import Storage

TEMPLATES = ("report_page.html", "report_charts.html", "report_style.html", "report_tokenizer.html")
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
        "count": units.count,
        "size": units.size,
        "share": units.share,
        "short": units.short,
        "figure": units.figure,
        "clock": units.clock,
        "printable": printable,
        "pretty": lambda value: json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, default=str),
    }
    mark = Markup(MARK).format(fingerprint)
    return environment.get_template(TEMPLATES[0]).render(**figures, **_drawings(figures), mark=mark)


def _drawings(figures: Mapping[str, Any]) -> dict[str, Any]:
    total, run = figures["total"], figures["run"]
    splits = [(split, sums) for split, sums in figures["splits"].items()]
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
