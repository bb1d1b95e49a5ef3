"""training/train.py beside a bare PyTorch loop and Hugging Face's Trainer: the same model, data, batch and cores.

On CPUs all are run in turns, some rounds long, and the best round of each counts: other work on the machine only ever
slows one down. On a GPU the larger models are run, once.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from corpus import BENCH, HERE
from processes import printed_figure
from table import Line, at_least, at_most
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from tokenizer.encode import END_OF_TEXT, TOKENIZER_FILE, Encoder
from tokenizer.shards import ShardIndex, ShardWriter
from training.arithmetic import known_peak
from training.config import Model
from training.model import configuration, count_parameters

ROOT = HERE.parents[1]
WORK = BENCH / "training"
ACCELERATE = "accelerate==1.15.0"  # which Trainer needs and the project does not
ROUNDS, TOKENS = 3, 3_000_000
BARE_BAR, TRAINER_BAR, BEST_BAR, LOADER_BAR = 0.95, 1.0, 1.5, 10.0
MFU_BARS, WAIT_BAR, LIMIT_SECONDS = {"124M": 0.45, "1.5B": 0.50}, 0.005, 1800
LOOK_SECONDS = 0.05


@dataclass(frozen=True)
class Setting:
    """What all loops are given alike."""

    model: Model
    vocab_size: int
    length: int
    sequences: int
    micro: int
    steps: int
    warmup_steps: int = 4

    @property
    def step_tokens(self) -> int:
        return self.length * self.sequences

    def config(self) -> Any:
        return configuration(self.model, vocab_size=self.vocab_size, context_tokens=self.length, end_of_text_id=0)


SMALL = Setting(Model(hidden_size=256, layers=6, heads=4, feed_forward_size=704), 8192, 256, 16, 8, steps=8)
MEDIUM = Model(architecture="gpt2", hidden_size=768, layers=12, heads=12)
LARGE = Model(architecture="gpt2", hidden_size=1600, layers=48, heads=25)
LENGTHS, AMPLE_BYTES = (1024, 2048), 120e9
GPU_COMPUTE = {"precision": "bf16", "compile": "true"}


def on_gpu(length: int, memory_bytes: float) -> dict[str, Setting]:
    """The models of the GPU's bars, by name; a larger micro-batch of the larger one where memory is ample."""
    micro = 20 if memory_bytes > AMPLE_BYTES else 12
    return {
        name: Setting(model, 50304, length, sequences * 1024 // length, micro * 1024 // length, steps, warmup)
        for name, model, sequences, micro, steps, warmup in (
            ("124M", MEDIUM, 256, 32, 10, 3),
            ("1.5B", LARGE, 120, micro, 4, 2),
        )
    }


def gpu_lines() -> Iterator[Line]:
    """Share of the peak that larger models reach on one GPU, where there is one."""
    import torch

    if not torch.cuda.is_available():
        yield Line("gpu", "124M and 1.5B on one GPU", "did not run: this machine has no GPU")
        return
    peak = known_peak(torch.cuda.get_device_name())
    if peak is None:
        yield Line("gpu", "124M and 1.5B on one GPU", "did not run: the peak of this GPU is not known")
        return
    memory = torch.cuda.get_device_properties(0).total_memory
    for name, setting in (item for length in LENGTHS for item in on_gpu(length, memory).items()):
        shards = shards_of(setting.vocab_size)
        what = f"{name} at {setting.length} in bf16 on a {torch.cuda.get_device_name()}"
        print(f"gpu: {what} ...", file=sys.stderr, flush=True)
        ours = _ours(setting, shards, compute=GPU_COMPUTE, deepspeed="zero1.json")
        bare = _other("bare", setting, shards, precision="bf16", compile=True)
        yield from compared_on_gpu(what, setting, ours, bare, MFU_BARS[name], peak)
        yield _loader_beside("gpu", f"{what}, ", shards, setting.step_tokens / ours["seconds"])


def compared_on_gpu(
    what: str, setting: Setting, ours: dict[str, float], bare: dict[str, float], bar: float, peak: float
) -> Iterator[Line]:
    """The lines of one model and length, on a GPU of that peak (operations a second)."""
    per_token = _flops_per_token(setting)
    mfu, theirs = (setting.step_tokens / run["seconds"] * per_token / peak for run in (ours, bare))
    aside = f" ({setting.step_tokens / ours['seconds']:,.0f} tokens/s)"
    yield at_least("gpu", f"{what}, MFU", mfu, bar, "{:.1%}", aside)
    yield at_least("gpu", f"{what}, times a bare compiled loop", mfu / theirs, 1.0, aside=f" (it: {theirs:.1%})")
    spent = {key: ours[key] / ours["seconds"] for key in ours if key.endswith("_seconds")}
    split = ", ".join(f"{key.removesuffix('_seconds').replace('_', ' ')} {share:.1%}" for key, share in spent.items())
    yield Line("gpu", f"{what}, a step's time", split)
    yield at_most("gpu", f"{what}, wait for data", spent["data_wait_seconds"], WAIT_BAR, "{:.2%}")


def training_lines() -> Iterator[Line]:
    """Tokens a second on CPUs."""
    shards = shards_of(SMALL.vocab_size)
    contenders = {
        "ours, fp32": lambda: _ours(SMALL, shards, compute={}),
        "bare": lambda: _other("bare", SMALL, shards),
        "trainer": lambda: _other("trainer", SMALL, shards),
        "ours, best": lambda: _ours(SMALL, shards, compute={"precision": "bf16", "compile": "true"}),
    }
    speeds: dict[str, float] = {}
    for number in range(ROUNDS):
        for name, run in contenders.items():
            print(f"training: {name}, round {number + 1} of {ROUNDS} ...", file=sys.stderr, flush=True)
            speeds[name] = max(speeds.get(name, 0.0), SMALL.step_tokens / run()["seconds"])
    ours = speeds["ours, fp32"]
    yield Line("training", "7M llama in fp32, tokens a second", f"{ours:,.0f} on {_threads()} cores")
    aside = " (it: {:,.0f})"
    yield at_least(
        "training", "times a bare loop", ours / speeds["bare"], BARE_BAR, aside=aside.format(speeds["bare"])
    )
    told = aside.format(speeds["trainer"])
    yield at_least("training", "times Hugging Face's Trainer", ours / speeds["trainer"], TRAINER_BAR, aside=told)
    best = speeds["ours, best"]
    what = "times itself with bf16 products, compiled"
    yield at_least("training", what, best / ours, BEST_BAR, aside=aside.format(best))
    yield _loader_beside("training", "", shards, best)


def _loader_beside(part: str, what: str, shards: Path, tokens_per_second: float) -> Line:
    """How much faster one thread fills batches than steps use them up."""
    filled = printed_figure(str(HERE / "loader.py"), "causal_1024", shards) * 1e6
    aside = f" (it: {filled / 1e6:,.0f} million tokens a second)"
    return at_least(
        part, f"{what}loader, times the tokens of steps", filled / tokens_per_second, LOADER_BAR, aside=aside
    )


def _flops_per_token(setting: Setting) -> float:
    """6N + 12 L d T."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        parameters = count_parameters(AutoModelForCausalLM.from_config(setting.config()))
    return 6 * parameters + 12 * setting.model.layers * setting.model.hidden_size * setting.length


def _ours(
    setting: Setting, shards: Path, compute: dict[str, object], deepspeed: str = "zero0.json"
) -> dict[str, float]:
    """Median seconds of a step, and of its parts, by training/train.py, which is ended when they are known.

    A step lasts from one row of the metrics to the next, with all that is done for it, as the steps of Trainer do: the
    times are those at which the file was written.
    """
    output = WORK / "run"
    shutil.rmtree(output, ignore_errors=True)
    with (WORK / "train.log").open("w+") as log:
        job = subprocess.Popen(command_of(setting, shards, output, compute, deepspeed), stdout=log, stderr=log)
        wanted, deadline = setting.warmup_steps + setting.steps, time.monotonic() + LIMIT_SECONDS
        written, rows = dict[int, float](), list[dict[str, float]]()
        try:
            while job.poll() is None and time.monotonic() < deadline:
                rows, at = rows_and_time(output)
                written.setdefault(len(rows), at)
                if len(rows) >= wanted:
                    break
                time.sleep(LOOK_SECONDS)
        finally:
            job.kill()
            job.wait()
        if len(rows) < wanted:
            log.seek(0)
            raise RuntimeError(f"training/train.py took {len(rows)} of {wanted} steps:\n{log.read()[-2000:]}")
    ends = [written[count] for count in range(setting.warmup_steps, wanted + 1) if count in written]
    return medians(rows, setting) | {"seconds": float(np.median(np.diff(ends)))}


def rows_and_time(output: Path) -> tuple[list[dict[str, float]], float]:
    """The metrics of whole lines, and when the last was written."""
    path = output / "metrics.jsonl"
    if not path.is_file():
        return [], 0.0
    while True:
        before, rows = path.stat().st_mtime, rows_of(output)
        if path.stat().st_mtime == before:
            return rows, before


def command_of(setting: Setting, shards: Path, output: Path, compute: dict[str, object], deepspeed: str) -> list[str]:
    """training/train.py on a setting, without an end."""
    options: dict[str, object] = {
        "shards": shards,
        "output": output,
        "max_steps": 10**6,
        "evaluation_tokens": 0,
        "checkpoint_every": 10**6,
        "deepspeed": ROOT / "infra" / "deepspeed" / deepspeed,
        "threads": _threads(),
        "batch.sequence_length": setting.length,
        "batch.sequences": setting.sequences,
        "batch.sequences_per_device": setting.micro,
    }
    options |= {f"model.{name}": value for name, value in vars(setting.model).items() if value != ""}
    options |= {f"compute.{name}": value for name, value in compute.items()}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, str(ROOT / "training" / "train.py"), *words]


def rows_of(output: Path) -> list[dict[str, float]]:
    """The metrics of whole lines, of a run that may be going on."""
    path = output / "metrics.jsonl"
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def medians(rows: list[dict[str, float]], setting: Setting) -> dict[str, float]:
    """Of the seconds in the metrics, from the first step on that is not for warming up."""
    taken = rows[setting.warmup_steps : setting.warmup_steps + setting.steps]
    keys = [key for key in taken[0] if key == "seconds" or key.endswith("_seconds")]
    return {key: float(np.median([row.get(key, 0.0) for row in taken])) for key in keys}


def _other(loop: str, setting: Setting, shards: Path, **more: object) -> dict[str, float]:
    """Median seconds of a step by a loop of training_loops.py."""
    environment = {"PYTHONPATH": f"{ROOT}:{_accelerate()}"} if loop == "trainer" else {"PYTHONPATH": str(ROOT)}
    printed = _run(other_command(loop, setting, shards, **more), environment)
    return {"seconds": float(np.median(json.loads(printed.splitlines()[-1])))}


def other_command(loop: str, setting: Setting, shards: Path, **more: object) -> list[str]:
    """training_loops.py on a setting."""
    record = setting.config().to_diff_dict()
    settings: dict[str, object] = {
        "loop": loop,
        "model": json.dumps(record),
        "shards": str(shards),
        "length": setting.length,
        "sequences": setting.sequences,
        "micro": setting.micro,
        "steps": setting.steps,
        "warmup_steps": setting.warmup_steps,
        "precision": "fp32",
        "compile": False,
        "threads": _threads(),
    }
    return [sys.executable, str(HERE / "training_loops.py"), json.dumps(settings | more)]


def _run(command: list[str], environment: dict[str, str]) -> str:
    """The output of a command; RuntimeError with its last lines if it fails."""
    WORK.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, env=os.environ | environment, cwd=WORK, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[1]} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout


def _accelerate() -> Path:
    """A folder with what Trainer needs beside the project's own environment."""
    folder = BENCH / "peers" / "accelerate"
    if not (folder / "accelerate").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        _run([*command, "--target", str(folder), ACCELERATE, "psutil"], {})
    return folder


def shards_of(vocab_size: int) -> Path:
    """Random tokens of a vocabulary, and a tokenizer of as many words that goes with them."""
    folder = WORK / f"shards-{vocab_size}"
    if (folder / "index.json").is_file():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tokenizer").mkdir(parents=True)
    draw = np.random.default_rng(0)
    letters = draw.integers(ord("a"), ord("z") + 1, (vocab_size, 8), np.uint8)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((word.tobytes().decode() for word in letters), trainer)
    tokenizer.save(str(folder / "tokenizer" / TOKENIZER_FILE))
    encoder = Encoder(folder / "tokenizer")
    assert encoder.vocab_size == vocab_size, encoder.vocab_size
    with (folder / "train-0.arrow").open("wb") as file:
        writer = ShardWriter(file, encoder.vocab_size)
        for _ in range(TOKENS // 1000):
            ids = draw.integers(1, vocab_size, 1000)
            ids[-1] = 0
            writer.append(ids.astype(np.uint16), bytes(16), 4000)
        shard = writer.close("train-0.arrow", "train")
    ShardIndex(encoder.fingerprint, encoder.vocab_size, encoder.end_of_text_id, (shard,)).save(folder)
    return folder


def _threads() -> int:
    return len(os.sched_getaffinity(0))
