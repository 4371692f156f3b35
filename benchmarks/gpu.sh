#!/usr/bin/env bash
# Tests and rows on a GPU machine in under 8 minutes:   benchmarks/gpu.sh [FOLDER]
#
# Needs torch 2.11 or newer, Triton and Python 3.10 or newer, and no network. Rows, a log and the calibration land in
# FOLDER (./gpu-results). Steps run in the order of their worth, each within its own limit; one that fails or runs out
# of time leaves its finished rows and doesn't stop the others. DEVICE=cpu tries the script out without a GPU, and
# LIMIT sets the seconds for everything.
set -uo pipefail
cd "$(dirname "$0")/.."
DEVICE="${DEVICE:-cuda}"
LIMIT="${LIMIT:-460}"
PYTHON="${PYTHON:-python3}"
mkdir -p "${1:-gpu-results}"
OUT="$(cd "${1:-gpu-results}" && pwd)"
LOG="$OUT/log.txt"
: > "$LOG"
START=$SECONDS
export PYTHONUNBUFFERED=1

# step SECONDS NAME COMMAND...: SIGINT first, so that Python can finish its rows.
step() {
  local most="$1" name="$2" left=$((LIMIT - (SECONDS - START))) status
  shift 2
  if ((left < 10)); then
    echo "== $name: no time left" | tee -a "$LOG"
    return 0
  fi
  echo "== $name ($((SECONDS - START)) s gone, at most $((most < left ? most : left)) s): $*" | tee -a "$LOG"
  timeout --signal=INT --kill-after=10 "$((most < left ? most : left))" "$@" 2>&1 | tee -a "$LOG"
  status=${PIPESTATUS[0]}
  echo "== $name: exit status $status" | tee -a "$LOG"
  return 0
}

bench() {
  step "$1" "$2" "$PYTHON" -m benchmarks run --device "$DEVICE" --out "$OUT" "${@:3}"
}

if [[ "$DEVICE" == cuda ]]; then
  step 60 machine nvidia-smi
  step 60 install "$PYTHON" -m pip install --quiet --no-deps --no-build-isolation .
fi
step 30 versions "$PYTHON" -c "import torch, triton, rooffuse; print(torch.__version__, triton.__version__, rooffuse.__file__)"
step 60 calibrate "$PYTHON" -c "
import json, pathlib
from rooffuse.cost_model import calibrate
device = calibrate('$DEVICE', print)
pathlib.Path('$OUT/calibration.json').write_text(json.dumps(device.to_dict(), indent=1))"
bench 150 kernels --suite kernels --dtype bf16,fp32 --quick
if [[ "$DEVICE" == cuda ]]; then
  beside=()
  "$PYTHON" -c "import xdist" 2> /dev/null && beside=(-n 4)
  step 100 tests "$PYTHON" -m pytest -q -m gpu -p no:cacheprovider --continue-on-collection-errors "${beside[@]}"
fi
bench 120 decode --suite decode --dtype bf16
step 60 profile "$PYTHON" -c "
import sys
from rooffuse.cli import main
sys.exit(main(['profile', 'gpt2', '--phase', 'prefill', '--context', '512', '--device', '$DEVICE', '--budget', '5',
               '--json', '$OUT/profile.json']))"
bench 90 blocks --suite blocks --dtype bf16
bench 90 max-autotune --suite kernels --dtype bf16 --against eager,inductor,inductor-max,rooffuse-max --only norm \
  --out "$OUT/max-autotune"
bench 60 compile --suite compile --quick
echo "== done after $((SECONDS - START)) s; rows and log are in $OUT" | tee -a "$LOG"
exit 0
