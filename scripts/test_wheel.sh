#!/usr/bin/env bash
# Builds a wheel against the oldest supported jax, installs it into a fresh environment
# beside the jax of your choice, and runs the tests against what is installed:
#
#   scripts/test_wheel.sh [PYTHON [JAX [PYTEST ARGUMENT...]]]
#
#   scripts/test_wheel.sh python3.11 jax==0.10.2
#   scripts/test_wheel.sh python3.13 jax tests/xla_ops      the newest jax, some tests
#
# The environment and the tests' copy, which has neither xla_ops nor dcn_jax, are made in
# a temporary folder.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${1:-python3}
jax=${2:-jax}
shift $(($# < 2 ? $# : 2))

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --quiet --disable-pip-version-check)
"${pip[@]}" wheel --no-deps --wheel-dir "$work" .
wheel=$(echo "$work"/*.whl)
"${pip[@]}" install "$wheel[test]" "$jax"

mkdir "$work/checkout"
git ls-files -z -- . ':!xla_ops' ':!dcn_jax' | xargs -0 cp --parents --target-directory "$work/checkout"
cd "$work/checkout"
"$work/venv/bin/python" - <<'PYTHON'
import sys

import dcn_jax
import jax
import xla_ops

for module in (xla_ops, dcn_jax):
    if not module.__file__.startswith(sys.prefix):
        sys.exit(f"test_wheel.sh: {module.__file__} is not the wheel's")
print(f"Python {sys.version.split()[0]}, jax {jax.__version__}, {xla_ops.__file__}")
PYTHON
"$work/venv/bin/python" -m pytest -n 2 --dist worksteal "$@"
