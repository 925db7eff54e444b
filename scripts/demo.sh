#!/usr/bin/env bash
# From a fresh clone to a trained detector: builds, trains the demo configuration on
# deformed_digits, evaluates on held-out images, writes pictures. Results: runs/demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh train
echo "installed and built after $SECONDS s"
# Huge pages for glibc's allocator save most page faults of a step.
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
.venv/bin/python -m train.main --config=train/configs/digits.py --workdir=runs/demo "$@"
echo "done after $SECONDS s: see runs/demo/evaluation.json, runs/demo/pictures, runs/demo/curves.png"
