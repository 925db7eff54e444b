#!/usr/bin/env bash
# Makes or reuses the virtual environment .venv and installs this checkout into it,
# editable, with its kernels built.
#
#   scripts/build.sh [EXTRA]        EXTRA: train (default) or test
#
# PYTHON chooses the interpreter of a new environment (3.11 or newer).
set -euo pipefail
cd "$(dirname "$0")/.."
extra=${1:-train}
case $extra in train | test) ;; *) echo "build.sh: unknown extra '$extra'; expected train or test" >&2; exit 2 ;; esac

python=${PYTHON:-python3}
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "build.sh: $("$python" --version) is too old; set PYTHON to Python 3.11 or newer" >&2
    exit 1
  }
  "$python" -m venv --clear .venv
fi

# Nothing to do when neither the build's inputs nor the wanted extra changed.
stamp=.venv/dcn_jax_$extra
inputs=$(cat pyproject.toml xla_ops/CMakeLists.txt $(find xla_ops/csrc -type f | sort) | sha256sum)
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$inputs" ]; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -e ".[$extra]"
  echo "$inputs" >"$stamp"
fi
