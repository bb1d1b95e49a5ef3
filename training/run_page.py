"""A training run as one self-contained HTML page, which needs no network and runs no script."""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from training.line_charts import COLORS, Line, Points, chart
from training.meter import Row, clock, last_finite, read_metrics, tokens_per_second
from training.objectives import FITTING
from training.run_folder import Plan, RunFolder
from training.samples import Sample, read_samples

SAMPLED_STEPS, MAX_EVENTS, MAX_CHARACTERS = 4, 200, 2000
_DARK = {"own": "#3fb68b", "other": "#e08a55", "third": "#8b93ee", "fourth": "#7d8894", "fifth": "#e07fb0"}
_DARK |= {"ink": "#e4e8ec", "quiet": "#9aa5b1", "line": "#343c45"}
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --panel: #f5f7f9; LIGHT }
@media screen and (prefers-color-scheme: dark) { :root { --page: #14181d; --panel: #1d232a; DARK } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1160px; padding: 28px 24px 60px; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "DejaVu Sans", sans-serif; }
h1 { font-size: 27px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 20px; margin: 36px 0 8px; padding-top: 14px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 14px 0 2px; }
.quiet { color: var(--quiet); }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 12px; margin: 18px 0; }
.tile { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 10px 14px; }
.tile b { display: block; font-size: 24px; line-height: 1.3; font-variant-numeric: tabular-nums; }
.tile span { color: var(--quiet); font-size: 13px; }
.charts { display: grid; grid-template-columns: repeat(2, 1fr); gap: 4px 28px; }
.charts > div:first-child { grid-column: 1 / -1; }
svg { display: block; width: 100%; height: auto; }
table { width: 100%; border-collapse: collapse; font-size: 14px; margin: 8px 0 16px; }
th, td { padding: 4px 8px; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
th { font-weight: 600; color: var(--quiet); }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; width: 90px; }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 8px 12px;
  margin: 4px 0 10px; font: 12.5px/1.45 ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
pre b { font-weight: 400; color: var(--quiet); }
.narrow { display: none; }
@media (max-width: 760px) {
  .tiles, .charts { grid-template-columns: 1fr; }
  .wide { display: none; }
  .narrow { display: block; }
}
"""


def write_page(folder: RunFolder) -> None:
    """Write RUN/run.html from what the run left on the disk; nothing where it has not begun."""
    plan, rows = folder.plan, read_metrics(folder.metrics)
    if plan is None or not rows:
        return
    partial = folder.page.with_suffix(".partial")
    partial.write_text(page(folder.path, plan, rows, read_samples(folder.samples)), "utf-8", "replace")
    partial.replace(folder.page)


def page(path: Path, plan: Plan, rows: Sequence[Row], samples: Sequence[Sample]) -> str:
    """The page; whatever comes from files or from the model is escaped."""
    told = events(rows)
    title = f"Run {html.escape(path.resolve().name)}: {rows[-1]['step']:,} of {plan.max_steps:,} steps"
    light, dark = (";".join(f"--{name}: {color}" for name, color in one.items()) for one in (COLORS, _DARK))
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{_STYLE.replace('LIGHT', light).replace('DARK', dark)}</style>\n</head>",
        f"<body>\n<h1>{title}</h1>",
        _tiles(rows, plan.recipe.objective.kind),
        '<h2>Curves</h2>\n<p class="quiet">By step. A line is the mean of neighbouring steps, its band their least '
        f"and greatest{'; dashed lines are the events below' if told else ''}.</p>",
        _curves(rows, [step for step, _ in told]),
        _events(told),
        _samples(samples, follows=plan.recipe.objective.kind not in FITTING),
        _settings(plan),
        "</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def loss_chart(
    rows: Sequence[Row], marks: Sequence[float] = (), *, width: int = 1112, height: int = 320, alone: bool = False
) -> str:
    """Training and held-out loss as an SVG."""
    lines = [Line("training", "own", series(rows, "loss"))]
    lines.append(Line("held out", "third", series(rows, "validation_loss"), dots=True))
    return chart(lines, width=width, height=height, label="Loss by step", events=marks, alone=alone)


def series(rows: Sequence[Row], name: str) -> Points:
    """A figure by step, where it was recorded."""
    return [(row["step"], row[name]) for row in rows if name in row]


def events(rows: Sequence[Row]) -> list[tuple[int, str]]:
    """What happened besides steps: resumptions, rewinds, skipped steps, figures that are not finite."""
    told = []
    for row in rows:
        step = int(row["step"])
        if row.get("resumed"):
            told.append((step, "the run went on from a checkpoint"))
        if row.get("rewound_from"):
            told.append((step, f"the run went back to here, from step {row['rewound_from']:,.0f}"))
        if row.get("skipped"):
            told.append((step, "the step was skipped: its gradient was not to be trusted"))
        elif not math.isfinite(row["loss"]):
            told.append((step, f"the loss was {row['loss']}"))
    return told


def _tiles(rows: Sequence[Row], kind: str) -> str:
    last = rows[-1]
    seconds = sum(row["seconds"] for row in rows)
    tiles = []
    if one := last_finite(rows, "loss"):
        tiles.append(("Training loss", f"{one['loss']:.4f}", f"nats a token, at step {one['step']:,}"))
    if one := last_finite(rows, "validation_loss"):
        perplexity = f"perplexity {one['perplexity']:.2f}" if "perplexity" in one else "nats a token"
        tiles.append(("Held-out loss", f"{one['validation_loss']:.4f}", perplexity))
    if one := last_finite(rows, "bits_per_byte"):
        note = "held out; compares any tokenizers" if kind == "causal" else "held out; about, as markers count too"
        tiles.append(("Bits per byte", f"{one['bits_per_byte']:.4f}", note))
    tiles.append(("Tokens", f"{last['tokens']:,}", f"in {clock(seconds)}, {last.get('epoch', 0):.2f} epochs"))
    tiles.append(("Tokens a second", f"{tokens_per_second(rows):,.0f}", "mean of the run, evaluations apart"))
    if "mfu" in last:
        work = sum(row.get("mfu", 0.0) * row["seconds"] for row in rows) / seconds
        tiles.append(("MFU", f"{work:.1%}", "of the device's peak in matrix products"))
        memory = max(row.get("memory_bytes", 0) for row in rows)
        tiles.append(("Memory", f"{memory / 1e9:.2f} GB", "the most that the first process held"))
        waited = sum(row.get("data_wait_seconds", 0.0) for row in rows) / seconds
        tiles.append(("Waiting for data", f"{waited:.2%}", "of the time of the steps"))
    cells = (f'<div class="tile">{name}<b>{value}</b><span>{note}</span></div>' for name, value, note in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _curves(rows: Sequence[Row], marks: Sequence[int]) -> str:
    bits = [Line("training", "own", series(rows, "training_bits_per_byte"))]
    bits.append(Line("held out", "third", series(rows, "bits_per_byte"), dots=True))
    shares = [
        Line(name, color, [(row["step"], row[key] / row["seconds"]) for row in rows if key in row and row["seconds"]])
        for name, key, color in (
            ("forward", "forward_seconds", "own"),
            ("backward", "backward_seconds", "third"),
            ("optimizer", "optimizer_seconds", "other"),
            ("communication", "communication_seconds", "fifth"),
            ("data", "data_wait_seconds", "fourth"),
        )
    ]
    wide = f'<div class="wide">{loss_chart(rows, marks)}</div>'
    narrow = f'<div class="narrow">{loss_chart(rows, marks, width=540, height=230)}</div>'
    drawn = [
        ("Loss, nats a token", wide + narrow),
        ("Bits per byte", chart(bits, label="Bits per byte by step", events=marks)),
        ("Learning rate", _one(rows, "learning_rate", marks, from_zero=True)),
        ("Gradient norm", _one(rows, "gradient_norm", marks, log_scale=True)),
        ("Tokens a second", _one(rows, "tokens_per_second", marks, from_zero=True)),
        ("MFU", _one(rows, "mfu", marks, from_zero=True)),
        (
            "Where a step's time goes, as shares",
            chart(shares, label="Shares of a step's time", events=marks, from_zero=True),
        ),
    ]
    cells = [f"<div><h3>{name}</h3>{svg}</div>" for name, svg in drawn if svg]
    return f'<div class="charts">{"".join(cells)}</div>'


def _one(
    rows: Sequence[Row], name: str, marks: Sequence[int], *, log_scale: bool = False, from_zero: bool = False
) -> str:
    line = Line(name, "own", series(rows, name))
    return chart([line], label=f"{name} by step", events=marks, log_scale=log_scale, from_zero=from_zero)


def _events(told: Sequence[tuple[int, str]]) -> str:
    if not told:
        return ""
    lines = "".join(f'<tr><td class="number">{step:,}</td><td>{what}</td></tr>' for step, what in told[:MAX_EVENTS])
    more = f'<p class="quiet">And {len(told) - MAX_EVENTS:,} more.</p>' if len(told) > MAX_EVENTS else ""
    return f'<h2>Events</h2>\n<table><tr><th class="number">Step</th><th>What</th></tr>{lines}</table>{more}'


def _samples(samples: Sequence[Sample], *, follows: bool) -> str:
    """`follows`: completions are what comes after their prompts."""
    between = "" if follows else "\n"
    steps = sorted({row["step"] for row in samples})
    shown = sorted(
        {steps[round(place * (len(steps) - 1) / (SAMPLED_STEPS - 1))] for place in range(SAMPLED_STEPS)}
        if steps
        else ()
    )
    parts = []
    for step in reversed(shown):
        parts.append(f"<h3>Step {step:,}</h3>")
        for row in samples:
            if row["step"] == step:
                prompt, text = (html.escape(row[name][:MAX_CHARACTERS]) for name in ("prompt", "completion"))
                parts.append(f"<pre><b>{prompt}</b>{between}{text}</pre>")
    return "<h2>What the model writes</h2>\n" + "\n".join(parts) if parts else ""


def _settings(plan: Plan) -> str:
    rows = []
    for group, values in asdict(plan.recipe).items():
        if group == "model" and values["config"]:  # it decides the others
            values = {f"config.{name}": value for name, value in json.loads(values["config"]).items()}
        for name, value in (values if isinstance(values, dict) else {"": values}).items():
            key = f"{group}.{name}".rstrip(".")
            rows.append(f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>")
    rows.append(f"<tr><td>data</td><td>{html.escape(plan.data_fingerprint)}</td></tr>")
    return f"<h2>Settings</h2>\n<table>{''.join(rows)}</table>"
