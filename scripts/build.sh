#!/usr/bin/env bash
# Makes or reuses the virtual environment .venv and installs this checkout into it,
# editable, with its kernels built and every package of the release in constraints.txt
# (scripts/lock.sh).
#
#   scripts/build.sh [EXTRA] [--cuda [ARCHITECTURES]]
#
# EXTRA is train (default), docs or test; test also builds the CUDA kernels for the CPU and the
# fuzz driver. The CUDA library is built where nvcc is found; --cuda makes its absence an
# error, and chooses the architectures: development (default), release, or numbers such as
# "80;90".
# PYTHON chooses the interpreter of a new environment (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."
extra=train
case ${1:-} in
  train | docs | test) extra=$1; shift ;;
  --cuda | "") ;;
  *) echo "build.sh: unknown extra '$1'; expected train, docs or test" >&2; exit 2 ;;
esac
options=()
if [ "${1:-}" = --cuda ]; then
  options+=(
    --config-settings=cmake.define.XLA_OPS_CUDA=ON
    "--config-settings=cmake.define.XLA_OPS_CUDA_ARCHITECTURES=${2:-development}"
  )
  shift $(($# > 1 ? 2 : 1))
fi
[ $# = 0 ] || { echo "build.sh: unknown argument '$1'" >&2; exit 2; }
[ "$extra" != test ] || options+=(
  --config-settings=cmake.define.XLA_OPS_EMULATED_CUDA=ON
  --config-settings=cmake.define.XLA_OPS_FUZZ=ON
)

python=${PYTHON:-python3}
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "build.sh: $("$python" --version) is too old; set PYTHON to Python 3.11 or newer" >&2
    exit 1
  }
  "$python" -m venv --clear .venv
fi

# Nothing to do when neither the build's inputs nor what is wanted changed.
stamp=.venv/dcn_jax_$extra
inputs=$(
  {
    echo "${options[@]}"
    cat pyproject.toml constraints.txt xla_ops/CMakeLists.txt $(find xla_ops/csrc -type f | sort)
  } | sha256sum
)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$inputs" ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check \
    --constraint constraints.txt "${options[@]}" -e ".[$extra]"
  rm -f .venv/dcn_jax_* # Another extra is built with other options.
  echo "$inputs" >"$stamp"
fi
