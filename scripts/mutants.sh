#!/usr/bin/env bash
# Do the checks of the kernels find bugs? Plants one at a time in a copy of the sources and
# runs the checks that must find it; harmless changes must pass.
#
#   scripts/mutants.sh                   all: an hour of one core
#   scripts/mutants.sh cuda              the CUDA kernels, on the CPU
#   scripts/mutants.sh cpu NAME          those of the CPU kernels whose name contains NAME
#
# The bugs: scripts/mutants/table.py.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh test
.venv/bin/python -m pip install --quiet --disable-pip-version-check cmake ninja pybind11
PATH=$PWD/.venv/bin:$PATH exec .venv/bin/python -m scripts.mutants "$@"
