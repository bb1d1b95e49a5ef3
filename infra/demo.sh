#!/usr/bin/env bash
# The main job on real input: corpus -> documents -> ... -> shards -> model -> completions -> report.
# Usage: infra/demo.sh WORKSPACE [SOURCE ...], with the environment's programs on PATH. What is done is skipped.
# TRAIN_OPTIONS adds to the command line of training/train.py, for instance "--train_minutes 60".
set -euo pipefail
cd "$(dirname "$0")/.."

workspace=$1
shift
if [ $# -gt 0 ]; then
  sources=(--sources "$@")
else
  # The Python files that every machine has: the standard library and the packages of this environment.
  library=$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')
  packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  sources=(--sources "$library" "$packages" --languages Python --exclude site-packages dist-packages)
fi
# As many processes as GPUs, as far as the sequences of a step can be shared out; on a CPU machine two.
gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
processes=2
for count in 1 2 4 8; do if [ "$gpus" -ge "$count" ]; then processes=$count; fi; done
if [ "$gpus" -eq 0 ]; then export DS_ACCELERATOR=cpu; fi
prompt='def fibonacci(n):'

hint() {
  echo "The demo stopped. To begin anew, name another WORKSPACE= or remove $workspace." >&2
}
trap hint ERR

number=0
begin=$SECONDS
stage() {
  number=$((number + 1))
  printf '\n[%d/11] %s  (%d min %02d s since the start)\n' "$number" "$1" $(((SECONDS - begin) / 60)) $(((SECONDS - begin) % 60))
}
spark() { spark-submit --properties-file infra/spark/local.conf "$@" 2> >(grep -v 'incubator modules' >&2); }

table() { echo "$workspace/$1"; }

stage "ingest: the corpus becomes a table of documents"
spark spark_jobs/ingest.py "${sources[@]}" --output "$(table documents)"
stage "measure: one reading of the content"
spark spark_jobs/measure.py --documents "$(table documents)" --output "$(table signals)"
stage "filter: the rules"
spark spark_jobs/filter.py --signals "$(table signals)" --output "$(table verdicts)"
stage "dedup: exact copies and near-duplicates"
spark spark_jobs/dedup.py --documents "$(table documents)" --signals "$(table signals)" \
  --verdicts "$(table verdicts)" --output "$(table duplicates)"
stage "ledger: one state a file"
spark spark_jobs/ledger.py --documents "$(table documents)" --signals "$(table signals)" \
  --verdicts "$(table verdicts)" --duplicates "$(table duplicates)" --output "$(table ledger)"
stage "sample: some of the files that survived, redacted"
spark spark_jobs/sample.py --documents "$(table documents)" --ledger "$(table ledger)" \
  --sample_bytes 50000000 --output "$(table sample)"
stage "tokenizer: byte-level BPE on the sample"
python tokenizer/train.py --sample "$(table sample)" --vocab_size 8192 --output "$(table tokenizer)"
stage "evaluate: the tokenizer on files that it has not seen"
python tokenizer/evaluate.py --tokenizer "$(table tokenizer)" --sample "$(table sample)" --output "$(table evaluation)"
stage "write_shards: tokens, split into train, validation and test"
spark spark_jobs/write_shards.py --documents "$(table documents)" --ledger "$(table ledger)" \
  --tokenizer "$(table tokenizer)" --output "$(table shards)"
stage "train: $processes processes under DeepSpeed"
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
# shellcheck disable=SC2086
deepspeed --log_level error --num_gpus "$processes" --master_port "$port" training/train.py --config training/configs/demo.yaml \
  --shards "$(table shards)" --output "$(table run)" ${TRAIN_OPTIONS:-}
stage "generate and report"
python training/generate.py --model "$(table run)/export" --prompt "$prompt" "import os" "class Stack:" \
  --temperature 0.6 --output "$(table run)/completions.jsonl" --overwrite
spark spark_jobs/report.py --workspace "$workspace" --output "$workspace/report.html" --overwrite

printf '\nDone in %d min %02d s. Where to look:\n' $(((SECONDS - begin) / 60)) $(((SECONDS - begin) % 60))
python - "$workspace" <<'END'
import json, sys
from pathlib import Path

workspace = Path(sys.argv[1])
summary = json.loads((workspace / "run" / "summary.json").read_text())
first = json.loads((workspace / "run" / "completions.jsonl").read_text().splitlines()[0])
print(f"  report          {workspace / 'report.html'}")
print(f"  model           {workspace / 'run' / 'export'}")
print(f"  trained         {summary['parameters']:,} parameters on {summary['tokens']:,} tokens")
if "validation_loss" in summary:
    print(f"  held-out loss   {summary['validation_loss']:.4f} nats a token")
    print(f"  perplexity      {summary['perplexity']:.2f}")
    print(f"  bits per byte   {summary['bits_per_byte']:.4f}")
else:
    print("  held-out loss   none: the corpus has no second repository to hold out")
print(f"  completion of   {first['prompt']}\n")
print("".join(f"    {line}\n" for line in (first["prompt"] + first["completion"]).splitlines()))
END
