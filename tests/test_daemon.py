"""What Python processes of Spark have loaded when they begin, and from where."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyspark
import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = Path(pyspark.__file__).parent
SCRIPT = """
import sys
from spark_jobs.session import start_session

def look(_):
    import pyspark
    yield "numba" in sys.modules, "pyarrow.parquet" in sys.modules, pyspark.__file__

with start_session("look") as spark:
    for found in spark.sparkContext.parallelize(range(4), 4).mapPartitions(look).distinct().collect():
        print("found", *found)
"""


@pytest.mark.parametrize(("module", "loaded"), [("spark_jobs.daemon", "True"), ("pyspark.daemon", "False")])
def test_workers_are_forked_with_what_they_need_loaded(tmp_path, module, loaded):
    (tmp_path / "look.py").write_text(SCRIPT)
    lines = (ROOT / "infra/spark/local.conf").read_text().splitlines()
    assert [line.split() for line in lines if "daemon" in line and not line.startswith("#")] == [
        ["spark.python.daemon.module", "spark_jobs.daemon"]
    ]
    submit = [Path(sys.executable).with_name("spark-submit"), "--properties-file", "infra/spark/local.conf"]
    command = [*submit, "--master", "local[2]", "--conf", f"spark.python.daemon.module={module}", tmp_path / "look.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    (found,) = (line.split()[1:] for line in done.stdout.splitlines() if line.startswith("found"))
    assert found[:2] == [loaded, loaded]
    if loaded == "True":
        assert found[2] == str(PACKAGE / "__init__.py")


def test_an_installed_pyspark_is_preferred_to_its_archive_and_no_other(tmp_path):
    archive = PACKAGE / "python" / "lib" / "pyspark.zip"
    elsewhere = tmp_path / "pyspark" / "python" / "lib" / "pyspark.zip"
    elsewhere.parent.mkdir(parents=True)
    shutil.copy(archive, elsewhere)
    for first, expected in ((archive, PACKAGE), (elsewhere, elsewhere / "pyspark")):
        command = [sys.executable, "-c", "import spark_jobs, pyspark; print(pyspark.__file__)"]
        path = os.pathsep.join(map(str, [first, *archive.parent.glob("py4j-*.zip"), ROOT]))
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == str(expected / "__init__.py")
