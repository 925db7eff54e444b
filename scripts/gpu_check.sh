#!/usr/bin/env bash
# Checks the CUDA kernels on a machine with a GPU, which needs no network, and writes one
# report in Markdown: builds, tests, a train step, speed beside torchvision, sanitizers.
# Takes at most 9 minutes.
#
#   scripts/gpu_check.sh [REPORT]               docs/benchmarks/<name of the GPU>.md
#   scripts/gpu_check.sh --emulated [REPORT]    a dry run on a machine without one
#
# --only=REGEX runs the stages whose titles it matches, with all time for them; the page
# is then docs/benchmarks/<name of the GPU>-<REGEX>.md.
#
# PYTHON chooses the interpreter, TORCH_PYTHON another one that has torch and torchvision.
# It uses what it finds: jax, flax, optax, pytest, pybind11, cmake, ninja, nvcc. Exit
# status 1: something failed.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m scripts.gpu_check "$@"
