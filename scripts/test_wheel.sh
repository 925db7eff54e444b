#!/usr/bin/env bash
# Installs a wheel into a fresh environment beside the jax of your choice, and runs the
# tests against what is installed. The wheel is one of scripts/wheels.sh, or it is built
# here, against the oldest supported jax:
#
#   scripts/test_wheel.sh [--wheel=WHEEL] [PYTHON [JAX [PYTEST ARGUMENT...]]]
#
#   scripts/test_wheel.sh python3.11 jax==0.10.2
#   scripts/test_wheel.sh python3.13 jax tests/xla_ops      the newest jax, some tests
#   scripts/test_wheel.sh --wheel=dist/WHEEL python3.12 jax==0.10.2
#
# All is made in a temporary folder, from a copy of the checkout; the tests run in what is
# left of it without xla_ops and dcn_jax.
set -euo pipefail
wheel=
case ${1:-} in
  --wheel=*)
    wheel=${1#--wheel=}
    [ -f "$wheel" ] || {
      echo "test_wheel.sh: expected a wheel, got '$wheel'; scripts/wheels.sh builds them" >&2
      exit 2
    }
    wheel=$(realpath "$wheel")
    shift
    ;;
esac
cd "$(dirname "$0")/.."
python=${1:-python3}
jax=${2:-jax}
shift $(($# < 2 ? $# : 2))

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
pip=("$work/venv/bin/python" -m pip --quiet --disable-pip-version-check)
mkdir "$work/checkout"
git ls-files -z | xargs -0 cp --parents --target-directory "$work/checkout"
cd "$work/checkout"
if [ -z "$wheel" ]; then
  "${pip[@]}" wheel --no-deps --wheel-dir "$work" .
  wheel=$(echo "$work"/*.whl)
fi
"${pip[@]}" install "$wheel[test]" "$jax"
rm -r xla_ops dcn_jax
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
# test_layering.py reads the sources of the packages.
"$work/venv/bin/python" -m pytest -n 2 --dist worksteal --ignore=tests/test_layering.py "$@"
