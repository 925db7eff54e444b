#!/usr/bin/env bash
# Writes constraints.txt: the release of every package that scripts/build.sh installs, for
# Python 3.11 to 3.14.
#
#   scripts/lock.sh              keeps what is there, adds what pyproject.toml asks for
#   scripts/lock.sh --upgrade    the newest of all; arguments go to `uv pip compile`
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check uv==0.13.9
uv=("$work/venv/bin/uv" pip compile --quiet --no-annotate)
"${uv[@]}" --universal --python-version 3.11 --extra test --custom-compile-command scripts/lock.sh \
  --output-file constraints.txt "$@" pyproject.toml
# Is there one that a version cannot install?
for version in 3.11 3.12 3.13 3.14; do
  "${uv[@]}" --python-version "$version" --extra test --constraint constraints.txt \
    --only-binary :all: --no-binary promise pyproject.toml >/dev/null
done
