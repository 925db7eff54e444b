#!/usr/bin/env bash
# Tests the CUDA kernels on a machine without a GPU: the operators' tests run on the kernels
# compiled for the CPU (XLA_OPS_EMULATE_CUDA), then the kernels alone under the address
# sanitizer. Tests of the plain jnp form alone are left out. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh test
XLA_OPS_EMULATE_CUDA=1 .venv/bin/python -m pytest -n 2 --dist worksteal \
  tests/xla_ops/test_call.py tests/xla_ops/test_deform_conv*.py tests/xla_ops/test_nms.py \
  tests/xla_ops/test_{roi,ps_roi,max_roi}_*.py -k "not (reference- or -reference)" "$@"
scripts/cuda_emulated.sh address
