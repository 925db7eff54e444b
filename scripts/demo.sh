#!/usr/bin/env bash
# From a fresh clone to a trained detector: builds, trains the demo configuration on
# deformed_digits, evaluates on held-out images, writes pictures, and shows what the
# network sees of a digit. Results: runs/demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh train
echo "installed and built after $SECONDS s"
# Huge pages for glibc's allocator save most page faults of a step.
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
run=(--config=train/configs/digits.py --workdir=runs/demo "$@")
.venv/bin/python -m train.main "${run[@]}"
echo "trained and evaluated after $SECONDS s"
# The large digit of the first picture, at its centre and as a region.
.venv/bin/python -m train.explain "${run[@]}" --output=runs/demo/explanation --example=0 \
    --node=159,109 --node=roi=96,20,223,198 --max_passes=400
echo "done after $SECONDS s: see runs/demo/evaluation.json, runs/demo/pictures, runs/demo/curves.png," \
    "runs/demo/explanation"
