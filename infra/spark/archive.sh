#!/usr/bin/env bash
# archive.sh ARCHIVE: the classes that Spark loads, as a file that the JVM maps (class data sharing), so that jobs
# start sooner. infra/spark/local.conf names it; without it, or with another JVM, jobs run all the same.
set -euo pipefail
cd "$(dirname "$0")/../.."
case "$1" in /*) archive=$1 ;; *) archive=$PWD/$1 ;; esac
[ ! -e "$archive" ] || exit 0
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "setup: archiving the classes of Spark; half a minute"
python - "$folder/documents" <<'PYTHON'
import sys, pathlib, pyarrow as pa, pyarrow.parquet as pq
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
texts = [" ".join(f"{number // 4}a{word}" for word in range(60)) + f" {number % 4}" for number in range(100)]
table = pa.table({"content": texts, "repo_name": ["some"] * 100, "path": [f"{number}.py" for number in range(100)]})
pq.write_table(table, folder / "documents.parquet")
PYTHON
options=$(sed -n 's/^spark.driver.extraJavaOptions *//p' infra/spark/local.conf | sed 's/-XX:SharedArchiveFile=[^ ]*//')
spark-submit --properties-file infra/spark/local.conf --master 'local[2]' \
  --conf "spark.driver.extraJavaOptions=$options -XX:ArchiveClassesAtExit=$archive" \
  spark_jobs/dedup.py --documents "$folder/documents" --output "$folder/duplicates" --survivors "$folder/survivors" \
  > "$folder/log" 2>&1 && [ -s "$archive" ] || { tail -n 5 "$folder/log"; echo "setup: no archive; jobs start somewhat later"; }
