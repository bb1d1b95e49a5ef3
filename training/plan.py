"""Shards and hardware -> which sizes fit, how fast they train, and whether the data is enough to train from scratch.

`python training/plan.py --shards SHARDS --gpus 8 --device H100 --hours 24`. Nothing is trained: memory is counted
(`memory.py`), speed is the share of the device's peak that training reaches (`--mfu`), and what a size is worth
follows published laws (`scaling.py`).
"""

import contextlib
import json as json_lines
import math
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from tokenizer.command_line import run
from tokenizer.shard_index import ShardIndex
from training import scaling
from training.arithmetic import known_peak
from training.config import Batch, Compute, Model
from training.sizing import Choice, Hardware, choice

CONFIGURATIONS = Path(__file__).parent / "configs"
# Gigabytes of memory by what the device's name holds, unless it says them itself ("A100-SXM4-40GB"); the first that
# matches counts. A GH200's name tells that of its CPU.
DEVICE_GB = (
    *((r"\bGH200\b", None), (r"\b(\d+) ?GB\b", None), (r"\bH100 NVL\b", 94), (r"\bH200\b", 141), (r"\bH100\b", 80)),
    *((r"\bB200\b", 180), (r"\bA100\b", 80), (r"\bL40S\b", 48), (r"\bA10G?\b", 24), (r"\bL4\b", 24)),
    *((r"\bV100\b", 32), (r"\bT4\b", 16)),
)
GPU_MFU, CPU_MFU = 0.45, 0.5
# The smaller CodeParrot: below that, models from scratch complete code rarely.
SMALLEST_USEFUL = 100e6


def main(
    *,
    shards: str,
    gpus: int = 1,
    device: str = "H100",
    memory_gb: float | None = None,
    hours: float = 24.0,
    peak_tflops: float | None = None,
    mfu: float | None = None,
    sequence_length: int | None = None,
    configs: str = str(CONFIGURATIONS),
    json: bool = False,
) -> None:
    """Print which of the model sizes fit on some hardware, what they reach in some hours, and a verdict.

    Args:
        shards: folder that write_shards wrote.
        gpus: how many; 0 = the CPUs of this machine.
        device: name of the GPU, as H100, H200, A100.
        memory_gb: of one GPU, in 10^9 bytes; default: the device's; of CPUs: what this machine has free.
        hours: of training, at most.
        peak_tflops: dense bf16 of one GPU; default: the data sheet's; of CPUs: measured here by a matrix product.
        mfu: share of that peak that training reaches.
        sequence_length: instead of those of the configurations.
        configs: folder of run configurations (.yaml) whose models are the sizes.
        json: print one JSON object instead of the table.
    """
    if gpus < 0 or not 0 < hours < math.inf:
        raise ValueError(f"gpus {gpus} must be 0 or more, hours {hours} above 0 and finite")
    if mfu is not None and not 0 < mfu <= 1:
        raise ValueError(f"mfu {mfu} is outside 0 to 1; it is a share of the peak, as {GPU_MFU}")
    for name, value in (("sequence_length", sequence_length), ("memory_gb", memory_gb), ("peak_tflops", peak_tflops)):
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"{name} {value} is not above 0 and finite; leave it out for the default")
    index = ShardIndex.load(shards)
    unique = sum(shard.tokens for shard in index.of_split("train"))
    hardware = hardware_of(gpus, device, memory_gb, peak_tflops, mfu, hours)
    found = [
        choice(name, model, batch, compute, index.vocab_size, unique, hardware)
        for name, model, batch, compute in sizes(Path(configs), sequence_length)
    ]
    found.sort(key=lambda one: one.parameters)
    told = verdict(found, unique, hardware)
    if json:
        record = {"data_tokens": unique, "hardware": asdict(hardware), "sizes": [asdict(one) for one in found]}
        print(json_lines.dumps(record | {"verdict": told}, indent=1))
    else:
        print(table(found, unique, hardware))
        print(told)


def hardware_of(
    gpus: int, device: str, memory_gb: float | None, peak_tflops: float | None, mfu: float | None, hours: float
) -> Hardware:
    """The hardware, completed from data sheets, or for CPUs from this machine; ValueError says what is unknown."""
    if gpus:
        peak = peak_tflops * 1e12 if peak_tflops else known_peak(device)
        memory = memory_gb or memory_of(device)
        if peak is None or memory is None:
            missing = "--peak_tflops (dense bf16)" if peak is None else "--memory_gb"
            raise ValueError(f"device {device!r} is not known; give its {missing}")
        return Hardware(gpus, device, memory * 1e9, peak, mfu or GPU_MFU, hours)
    peak = peak_tflops * 1e12 if peak_tflops else _cpu_peak()
    memory = memory_gb * 1e9 if memory_gb else _available_bytes()
    return Hardware(0, "CPU", memory, peak, mfu or CPU_MFU, hours)


def memory_of(device: str) -> float | None:
    """Gigabytes of a GPU by its name; None where that does not tell."""
    for pattern, size in DEVICE_GB:
        if found := re.search(pattern, device, re.IGNORECASE):
            return float(found[1]) if size is None and found.groups() else size
    return None


def _available_bytes() -> float:
    """Memory of this machine that programs can have, what caches files included (Linux), else what is free."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo") as lines:
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def sizes(folder: Path, sequence_length: int | None) -> Iterator[tuple[str, Model, Batch, Compute]]:
    """Name, shape, batch and arithmetic of each run configuration that describes a model of its own."""
    import yaml

    paths = sorted(folder.glob("*.yaml"))
    if not paths:
        raise ValueError(f"{folder} holds no run configurations (*.yaml); name a folder of some with --configs")
    seen = set()
    for path in paths:
        try:
            record = yaml.safe_load(path.read_text()) or {}
            settings = record.get("model")
            if not isinstance(settings, dict) or "hidden_size" not in settings:
                continue
            model, compute = Model(**settings), Compute(**record.get("compute", {}))
            batch = Batch(**record.get("batch", {}))
        except (yaml.YAMLError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is no run configuration: {error}; mend it, or move it elsewhere") from None
        batch = replace(batch, sequence_length=sequence_length or batch.sequence_length)
        if (model, batch.sequence_length) not in seen:
            seen.add((model, batch.sequence_length))
            yield path.stem, model, batch, compute
    if not seen:
        raise ValueError(f"no run configuration in {folder} has a model.hidden_size; name a folder with --configs")


def verdict(found: list[Choice], unique_tokens: int, hardware: Hardware) -> str:
    """One line: train from scratch, which size and on how much, or fine-tune, and why."""
    fitting = [one for one in found if one.layout]
    if not fitting:
        return "Verdict: none of these sizes fits; take more or larger devices, or a smaller model."
    best = min(fitting, key=lambda one: (round(one.expected_loss, 2), one.parameters))
    reach, _ = scaling.optimal_size(hardware.flops * hardware.hours * 3600)
    feeds = scaling.largest_for(unique_tokens)
    scratch = f"{best.name} is the best of these, {best.epochs:.2g} epochs in {_in_digits(best.hours)} hours"
    scratch += ", or longer, as it is offloaded" if best.is_offloaded else ""
    if min(feeds, reach) < SMALLEST_USEFUL:
        bound = (
            f"{short(unique_tokens)} tokens, read {scaling.FREE_EPOCHS:g} times, feed"
            if feeds <= reach
            else f"{hardware.hours:g} hours on this hardware are enough for"
        )
        return (
            f"Verdict: fine-tune an existing model: {bound} a model of {short(min(feeds, reach))} parameters, fewer "
            f"than {short(SMALLEST_USEFUL)}. From scratch, {scratch}."
        )
    if best.epochs > scaling.FREE_EPOCHS:
        repeated = f"beyond {scaling.FREE_EPOCHS:g} epochs repetition costs: more data, or a shorter run"
        return f"Verdict: train from scratch, short of data: {scratch}; {repeated}."
    return f"Verdict: enough data to train from scratch: {scratch}."


def table(found: list[Choice], unique_tokens: int, hardware: Hardware) -> str:
    """The sizes, a row each, under a line that says of what."""
    flops = hardware.flops * hardware.hours * 3600
    reach, tokens = scaling.optimal_size(flops)
    best, read = scaling.best_of_data(flops, unique_tokens)
    name = f"{hardware.gpus} x {hardware.device}" if hardware.gpus else "the CPUs of this machine"
    lines = [
        f"{short(unique_tokens)} tokens of data; {name}, {hardware.memory_bytes / 1e9:.0f} GB, "
        f"{hardware.peak_flops / 1e12:.3g} TFLOP/s each at {hardware.mfu:.0%}; {hardware.hours:g} hours: "
        f"compute-optimal are {short(reach)} parameters on {short(tokens)} tokens; of this data, {short(best)} on "
        f"{short(read)} ({read / unique_tokens:,.3g} epochs)",
        "",
    ]
    heads = ("size", "parameters", "length", "ZeRO", "micro-batch", "memory", "tokens/s", "hours", "tokens", "epochs")
    rows: list[tuple[str, ...]] = [(*heads, "hours to 20/param.", "loss (web text)")]
    rows += [_row(one) for one in found]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    if offloaded := [f"{one.name} {one.host_bytes / 1e9:.0f} GB" for one in found if one.is_offloaded]:
        lines.append(f"≤: without traffic with the host, which has to hold, buffers apart: {', '.join(offloaded)}.")
    if not hardware.gpus:
        lines.append("Memory is that of runs that are not compiled; compiled ones take 0.7 to 1.2 times as much.")
    return "\n".join(lines)


def short(number: float) -> str:
    """A count in three digits: 124 M."""
    for bound, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= bound:
            return f"{number / bound:.3g} {unit}"
    return f"{number:.3g}"


def _row(one: Choice) -> tuple[str, ...]:
    name, layout = one.name, one.layout
    stage = "-" if layout is None else f"{layout.stage}{' offload' if layout.offload else ''}"
    return (
        name,
        short(one.parameters),
        f"{one.sequence_length:,}",
        stage,
        "does not fit" if layout is None else f"{layout.micro_batch}",
        f"{one.memory_bytes / 1e9:.2f} GB",
        f"{'≤ ' if one.is_offloaded else ''}{one.tokens_per_second:,.0f}",
        _in_digits(one.hours),
        short(one.tokens),
        f"{one.epochs:.2g}",
        _in_digits(one.optimal_hours),
        f"{one.expected_loss:.2f}",
    )


def _in_digits(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 1000 else f"{hours:.3g}"


def _cpu_peak() -> float:
    import torch

    from training.gauges import measured_peak

    return measured_peak(torch.device("cpu"), "fp32")


if __name__ == "__main__":
    run(main)
