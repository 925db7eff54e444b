#!/usr/bin/env bash
# Compiles the CUDA kernels for the CPU (xla_ops/csrc/simt/simt_host.h) and checks them
# without a GPU, by the programs in tests/cuda.
#
#   scripts/cuda_emulated.sh             against plain loops, in three orders of threads
#   scripts/cuda_emulated.sh address     the same under the address and undefined-behaviour
#                                        sanitizers
#   scripts/cuda_emulated.sh thread      under the thread sanitizer, which finds races
#                                        between CUDA threads; minutes
#
# CSRC chooses other sources than xla_ops/csrc, CXX the compiler, PROGRAMS some of the
# programs. Exit status 3: they do not compile.
set -euo pipefail
cd "$(dirname "$0")/.."
mode=${1:-plain}
case $mode in
  plain) flags=(-O2) ;;
  address) flags=(-O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined) ;;
  thread) flags=(-O1 -g -fsanitize=thread) ;;
  *) echo "cuda_emulated.sh: unknown mode '$mode'; expected plain, address or thread" >&2; exit 2 ;;
esac
csrc=${CSRC:-xla_ops/csrc}
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT

# Products and sums are not fused: nms would select other boxes.
flags+=(-std=c++17 -Wall -Wextra -Wno-unknown-pragmas -ffp-contract=off)
flags+=(-DXLA_OPS_EMULATES_CUDA -I"$csrc" -Itests/cuda)

# The kernels that a program checks.
declare -A kernels=(
  [deform_conv]="deform_conv/cuda/*.cu"
  [max_roi_pool]=roi/cuda/max_pool.cu
  [nms]=nms/cuda/kernels.cu
  [roi_pool]="roi/cuda/pool_*.cu"
  [simt]=
)

# Compiles and runs a program.
check() {
  local program="$build/$1" files=()
  if [ -n "${kernels[$1]}" ]; then files=("$csrc"/${kernels[$1]}); fi
  if ! "${CXX:-c++}" "${flags[@]}" -x c++ "tests/cuda/${1}_test.cc" "${files[@]}" -o "$program"; then
    echo 3 >"$build/status"
  elif "$program"; then
    echo "$1: passed ($mode)"
  else
    echo "$1: failed ($mode)"
    echo 1 >"$build/status"
  fi
}

for test in ${PROGRAMS:-$(basename -s _test.cc tests/cuda/*_test.cc)}; do
  while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n; done
  check "$test" || echo 1 >"$build/status" &
done
wait
[ ! -e "$build/status" ] || exit "$(cat "$build/status")"
