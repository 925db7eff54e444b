#!/usr/bin/env bash
# Fuzzes the CPU kernels under sanitizers, each instruction set for a while:
#
#   scripts/sanitize.sh [SECONDS]        60 where not given
#
# First under AddressSanitizer and UndefinedBehaviorSanitizer, then under ThreadSanitizer
# with two callers that share a thread pool, as the devices of one program do. Fails on any
# finding, and prints the command that repeats the case. PYTHON names an interpreter that
# has jax, pybind11, cmake and ninja, in place of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-60}

python=${PYTHON:-}
if [ -z "$python" ]; then
  scripts/build.sh test
  python=$PWD/.venv/bin/python
  "$python" -m pip install --quiet --disable-pip-version-check cmake ninja pybind11
fi
PATH="$(dirname "$(command -v "$python")"):$PATH"

build() { # NAME SANITIZERS
  cmake -S xla_ops -B "build/$1" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
    -DPython_EXECUTABLE="$(command -v "$python")" -DXLA_OPS_FUZZ=ON -DXLA_OPS_SANITIZE="$2" \
    >"build/$1.log"
  ninja -C "build/$1" fuzz >>"build/$1.log" || { tail -n 40 "build/$1.log" >&2; exit 1; }
}

findings=0
fuzz() { # NAME ISA OPTION...
  local name=$1 isa=$2 log=build/$1-$2.txt
  shift 2
  echo "== $name, XLA_OPS_CPU_ISA=$isa"
  if XLA_OPS_CPU_ISA=$isa "build/$name/native/fuzz" --seconds="$seconds" "$@" >"$log" 2>&1; then
    cat "$log"
  else
    findings=$((findings + 1))
    head -n 60 "$log" | cut -c 1-200
    echo ...
    tail -n 25 "$log" | cut -c 1-200
    echo "repeat with XLA_OPS_CPU_ISA=$isa build/$name/native/fuzz; the whole report: $log"
  fi
}

mkdir -p build
build asan address,undefined,float-cast-overflow
build tsan thread
for isa in baseline avx2 native; do
  fuzz asan "$isa"
done
for isa in baseline avx2 native; do
  fuzz tsan "$isa" --callers=2 --threads=4
done
echo "$findings of 6 runs ended with a finding"
exit $((findings > 0))
