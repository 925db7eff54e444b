#!/usr/bin/env bash
# Tests the CUDA kernels on a machine without a GPU: the operators' tests run on the kernels
# compiled for the CPU (XLA_OPS_EMULATE_CUDA), then the kernels alone, against plain loops;
# these under the address sanitizer are a slow test of scripts/test.sh. Left out are tests of the plain jnp form alone, those of second derivatives, which
# it computes, of what no kernel sees (arguments, sharding), and those that take long here:
# test_determinism, test_forward_mode, test_generated, test_properties, test_roi_properties,
# test_transforms, test_the_process_lives.
# Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh test
left_out="[reference] or reference- or -reference or of_the_reference or features_sum_up or test_roi_properties"
left_out+=" or second_order or second_deriv or hessian or the_process_lives"
left_out+=" or test_deform_conv_errors or test_generated or test_sampling_positions"
left_out+=" or _sharding"
XLA_OPS_EMULATE_CUDA=1 .venv/bin/python -m pytest -n 2 --dist worksteal \
  tests/xla_ops/test_{call,half_precision}.py tests/xla_ops/{deform_conv,roi,non_max_suppression} \
  -k "not ($left_out)" "$@"
scripts/cuda_emulated.sh
