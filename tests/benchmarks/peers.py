"""Other tools on the same files, each in an environment of its own and driven as its documentation shows.

A driver in peers/ gets a folder of Parquet files and a file to write the numbers of the kept rows into; it is timed as
a whole process. Slow tools get a sample: what is compared is megabytes of text a second.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from corpus import BENCH, HERE
from processes import measure


class Peer(NamedTuple):
    """A tool: what pip installs, which driver runs it, how, and how many times as fast the job here has to be."""

    name: str
    packages: tuple[str, ...]
    driver: str
    option: str = ""
    speed_bar: float | None = None
    timed_on: str = "sample"  # the corpus
    judged: bool = True  # fast enough for the corpus whose pairs are all known


# datatrove names the libraries that its word tokenizer needs in extras, together with many that it does not need.
DATATROVE = ("datatrove[io]==0.10.1", "spacy", "regex", "tokenizers", "xxhash<4")
RENSA = ("rensa==0.5.0", "pyarrow")
PEERS = (
    Peer("datatrove", DATATROVE, "datatrove_minhash.py", speed_bar=20, judged=False),
    Peer("text-dedup", ("text-dedup==0.4.0",), "text_dedup_minhash.py", speed_bar=20, judged=False),
    Peer("datasketch", ("datasketch==2.0.0", "pyarrow"), "datasketch_lsh.py", speed_bar=10),
    Peer("rensa RMinHash", RENSA, "rensa_rminhash.py", speed_bar=4, timed_on="quarter"),
    Peer("rensa inline, of words", RENSA, "rensa_inline.py", "words", speed_bar=0.5, timed_on="quarter"),
    Peer("rensa inline, of shingles", RENSA, "rensa_inline.py", "shingles", timed_on="quarter"),
)
# Megabytes a second that others report of themselves, on hardware of theirs.
QUOTED = {"CodeParrot's script": 4.2, "BigCode's script": 1.8}


def environment(peer: Peer) -> Path | None:
    """Python of the peer's own environment, made on the first call; None, and a line that says why, if pip fails."""
    folder = BENCH / "peers" / re.split(r"[\[=]", peer.packages[0])[0]
    python, ready = folder / "bin" / "python", folder / ".ready"
    if not ready.exists() or ready.read_text() != " ".join(peer.packages):
        print(f"peers: installing {peer.packages[0]} ...", file=sys.stderr, flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *peer.packages]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            why = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
            print(f"peers: {peer.name} is left out, it cannot be installed here: {why[-1:]}", file=sys.stderr)
            return None
        ready.write_text(" ".join(peer.packages))
    return python


def run_peer(peer: Peer, documents: Path) -> tuple[float, np.ndarray] | None:
    """Seconds that it took, and the numbers of the rows that it keeps; None if it is not to be had or fails."""
    python = environment(peer)
    if python is None:
        return None
    work = BENCH / "out" / f"{Path(peer.driver).stem}{peer.option}-{documents.name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    print(f"{peer.name} on {documents.name} ...", file=sys.stderr, flush=True)
    command = [str(python), str(HERE / "peers" / peer.driver), str(documents), str(work / "kept.txt"), peer.option]
    try:
        measured = measure(command, work / "log.txt", cwd=work)
    except RuntimeError as error:
        print(f"peers: {peer.name} is left out: {error}", file=sys.stderr)
        return None
    return measured.seconds, np.loadtxt(work / "kept.txt", dtype=np.int64, ndmin=1)
