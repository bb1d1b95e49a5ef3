"""The rules of the house: layers, names, command lines that answer at once, and a README that tells the truth."""

import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from spark_jobs import KERNELS, kernel_folder

ROOT = Path(__file__).parent.parent
PACKAGES = ("spark_jobs", "tokenizer", "training")
ENTRIES = sorted(
    path.relative_to(ROOT).as_posix()
    for package in PACKAGES
    for path in (ROOT / package).glob("*.py")
    if re.search(r"\n    run\((main|\[[a-z, ]+\])\)", path.read_text())
)
# Names that an installed library is imported by; a module of the same name beside a script would hide it.
LIBRARIES = {
    *("pyspark", "pyarrow", "datasketch", "tokenizers", "transformers", "deepspeed", "torch", "datasets", "evaluate"),
    *("numpy", "numba", "pandas", "jinja2", "matplotlib", "tensorboard", "xxhash", "jsonargparse", "gigatoken"),
    *("safetensors", "regex", "yaml", "py4j", "identify", "packaging", "accelerate"),
}


def test_every_layer_keeps_to_itself():
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_hides_a_library(package):
    """The folder of a script is sys.path[0]: `tokenize.py` there would end the interpreter."""
    names = {path.stem for path in (ROOT / package).iterdir() if path.suffix == ".py" or path.is_dir()}
    names -= {"__init__", "__pycache__"}
    if package == "tokenizer":
        names.remove("evaluate")  # Hugging Face's has that name; nothing that the token layer imports asks for it
    assert not names & (set(sys.stdlib_module_names) | LIBRARIES | set(PACKAGES))


def test_all_entries_are_found():
    expected = {"ingest", "measure", "filter", "dedup", "decontaminate", "ledger", "write_shards", "report", "explain"}
    expected |= {"sample"}
    assert {f"spark_jobs/{name}.py" for name in expected} <= set(ENTRIES)
    assert {"tokenizer/train.py", "tokenizer/evaluate.py", "training/train.py", "training/generate.py"} <= set(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES)
def test_help_answers_within_a_second_and_without_spark_or_torch(entry):
    command = [sys.executable, "-X", "importtime", entry, "--help"]
    seconds = []
    for _ in range(3):  # the machine may be busy: the best of three is the program's own time
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - begin)
        if seconds[-1] < 1:
            break
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout
    assert min(seconds) < 1
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines() if "|" in line}
    assert not imported & {"pyspark", "torch", "deepspeed", "transformers"}


@pytest.mark.parametrize("entry", ENTRIES)
def test_wrong_arguments_are_a_usage_error(entry):
    done = subprocess.run(
        [sys.executable, entry, "--no_such_option", "1"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def readme_commands() -> list[str]:
    """Every line of the README's shell blocks, with continued lines joined."""
    blocks = re.findall(r"```(?:sh|bash|shell)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands_are_real(command):
    """Programs of ours take the options that the README gives them; make has the targets."""
    words = [word for word in shlex.split(command, comments=True) if not re.match("[A-Z_]+=", word)]
    # The Slurm script hands its options to train.py.
    words = ["training/train.py" if word == "infra/slurm/train.sbatch" else word for word in words]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in words[1:] if word not in targets] == []
        return
    script = next((word for word in words if word.endswith(".py") and "/" in word), None)
    if script is None:
        assert words[0] in {"git", "cd", "source", "apt-get", "pip", "open"}
        return
    for word in words:
        if word.startswith(("infra/", "training/configs/")):
            assert (ROOT / word).exists(), word
    given = words[words.index(script) + 1 :]
    options = {word.split("=")[0] for word in given if word.startswith("--")}
    asked = [sys.executable, script, *given[: not given[0].startswith("--")], "--help"]
    done = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True)
    assert options <= set(re.findall(r"--[a-zA-Z_.]+", done.stdout))


def test_a_changed_kernel_is_compiled_anew(tmp_path):
    """And what calls it, in another file, too: numba itself looks at the caller's file alone."""
    package = tmp_path / "spark_jobs"
    for name in KERNELS:
        shutil.copytree(ROOT / "spark_jobs" / name, package / name)
    before = kernel_folder(package)
    assert before.parent == package / "__pycache__"
    assert kernel_folder(package) == before
    words = package / "near_duplicates" / "words.py"
    words.write_text(words.read_text().replace("0x9FB21C651E98DF25", "0x9FB21C651E98DF27"))
    assert kernel_folder(package) != before
