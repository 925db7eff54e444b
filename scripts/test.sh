#!/usr/bin/env bash
# Builds in .venv, checks the style, runs the tests. Arguments go to pytest:
#
#   scripts/test.sh                 everything but the slow tests
#   scripts/test.sh -m slow         the slow tests
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/build.sh test
scripts/lint.sh
exec .venv/bin/python -m pytest -n 2 --dist worksteal "$@"
