#!/usr/bin/env bash
# Builds the site of the documentation into build/site and runs its notebooks, a few
# minutes. Any warning, such as a broken link, is an error. Arguments go to Sphinx:
#
#   scripts/docs.sh
#   scripts/docs.sh -D nb_execution_mode=off    without running the notebooks
set -euo pipefail
cd "$(dirname "$0")/.."
# The tests' environment where there is one: another extra would be built anew.
extra=docs
[ ! -f .venv/dcn_jax_test ] || extra=test
scripts/build.sh "$extra"
.venv/bin/python -m sphinx -W --keep-going -q -b html "$@" docs build/site
echo "build/site/index.html"
