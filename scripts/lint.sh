#!/usr/bin/env bash
# Style and types: ruff, pyright, clang-format. `scripts/lint.sh --fix` mends what it can.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
sources=$(git ls-files 'xla_ops/csrc/*' 'scripts/*.cc' 'tests/native/*.cc' 'tests/native/*.h' 'tests/cuda/*')
if [ "${1:-}" = --fix ]; then
  ruff check --fix .
  ruff format .
  clang-format -i $sources
fi
ruff check .
ruff format --check .
clang-format --dry-run --Werror $sources
pyright
