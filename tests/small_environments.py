"""Environments for libraries that the project does not depend on: made once, under .bench, with pinned versions.

That of mosaicml-streaming takes 6 GB: its torchvision wants a torch of its own.
"""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ENVIRONMENTS = Path(__file__).parents[1] / ".bench" / "readers"


def python_with(name: str, *packages: str) -> Path:
    """Python of an environment that has the packages; behind them it sees the project's own (torch is large).

    The test is skipped, with pip's reason, where they cannot be installed.
    """
    folder = ENVIRONMENTS / name
    python, ready = folder / "bin" / "python", folder / ".ready"
    if ready.exists() and ready.read_text() == " ".join(packages):
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        why = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        pytest.skip(f"{' '.join(packages)} cannot be installed here: {why[-1:]}")
    ready.write_text(" ".join(packages))
    return python


def answer_of(python: Path, program: str, *arguments: object) -> str:
    """What a program prints; it runs with the environment's own libraries, without this checkout on its path."""
    command = [str(python), "-P", "-c", program, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=_clean_environment())
    assert done.returncode == 0, done.stderr
    return done.stdout


def _clean_environment() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "HOME": str(ENVIRONMENTS), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
