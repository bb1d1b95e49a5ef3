#!/usr/bin/env bash
# The headers of libaio, which DeepSpeed builds its reader of disks with (offload to NVMe): install them through apt
# where the user may; else say what is left out. Tests alone call this: nothing else needs them unless it offloads.
set -euo pipefail

has_headers() {
  echo '#include <libaio.h>' | c++ -E -x c++ - >/dev/null 2>&1
}

if has_headers; then exit 0; fi

as_root=
if [ "$(id -u)" -ne 0 ]; then as_root="sudo -n"; fi
if command -v apt-get >/dev/null && { [ -z "$as_root" ] || $as_root true 2>/dev/null; }; then
  echo "setup: installing libaio-dev through apt"
  $as_root apt-get update -qq || true
  $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends libaio-dev || true
fi
has_headers || echo "setup: no headers of libaio: tests of offload to NVMe are skipped (libaio-dev, libaio-devel)" >&2
