#!/usr/bin/env bash
# Compiles our programs for GPUs and TPUs that are not there, and judges what XLA makes of
# them against docs/aot.md:
#
#   scripts/aot.sh [cuda|tpu]             everything, for one platform or both; takes long
#   scripts/aot.sh --short                operators and a small train step, for one H100
#   scripts/aot.sh --machine=h100 --only='^nms'
#   scripts/aot.sh cuda --write           the tables of docs/aot.md anew; with --only, the
#                                         lines of some programs
#   scripts/aot.sh --mutants              plants faults: does compiling see them?
#
# Fails where a call of ours is unknown or missing, where a batch is gathered, where memory
# does not suffice, and where a figure grew by more than a tenth. Needs nvcc, and from a
# package index the wheels that jaxlib's version goes with: build/aot keeps them. Exit
# status 77: it cannot be done here, and the last line says why.
set -euo pipefail
cd "$(dirname "$0")/.."
skip() {
  echo "aot.sh: skipped: $1"
  exit 77
}

platforms=(cuda tpu)
module=scripts.aot
arguments=()
for argument in "$@"; do
  case $argument in
    cuda | tpu) platforms=("$argument"); arguments+=("$argument") ;;
    --short) platforms=(cuda); arguments+=("$argument") ;;
    --mutants) platforms=(cuda); module=scripts.aot.mutants ;;
    --machine=v5e) platforms=(tpu); arguments+=("$argument") ;;
    --machine=*) platforms=(cuda); arguments+=("$argument") ;;
    *) arguments+=("$argument") ;;
  esac
done

# The tests' environment where there is one: another extra would be built anew.
extra=train
[ ! -f .venv/dcn_jax_test ] || extra=test
scripts/build.sh "$extra"
case " ${platforms[*]} " in
  *" cuda "*)
    command -v nvcc >/dev/null || [ -x /usr/local/cuda/bin/nvcc ] || skip "there is no nvcc"
    ;;
esac

for platform in "${platforms[@]}"; do
  wheels=$(.venv/bin/python - "$platform" <<'PYTHON'
import importlib.metadata, re, sys

if sys.argv[1] == "cuda":
    version = importlib.metadata.version("jaxlib")
    print(f"jax-cuda13-pjrt=={version}", f"jax-cuda13-plugin=={version}")
else:
    # What jax[tpu] asks for.
    needs = importlib.metadata.requires("jax") or []
    print(*(re.split(r"\s*;", n)[0] for n in needs if n.startswith("libtpu") and "tpu" in n.split(";")[-1]))
PYTHON
)
  folder=build/aot/$platform
  if [ "$(cat "$folder/wheels" 2>/dev/null)" != "$wheels" ]; then
    rm -rf "$folder"
    # shellcheck disable=SC2086
    mkdir -p build
    if ! .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
      --target "$folder" $wheels 2>"build/aot-pip.log"; then
      skip "cannot install $wheels: $(grep -v WARNING build/aot-pip.log | tail -1)"
    fi
    echo "$wheels" >"$folder/wheels"
  fi
done
exec .venv/bin/python -m "$module" "${arguments[@]}"
