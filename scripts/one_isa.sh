#!/bin/sh
# A launcher of CMake's compiler: kernels' objects of all instruction sets but one stay as they
# are, once they exist.
#
#   -DCMAKE_CXX_COMPILER_LAUNCHER="$PWD/scripts/one_isa.sh;avx2"
isa=$1
shift
previous=
for word in "$@"; do
  if [ "$previous" = -o ]; then
    case "$word" in
      *CMakeFiles/cpu_handlers* | *"CMakeFiles/cpu_$isa"*) ;;
      *CMakeFiles/cpu_*) [ -e "$word" ] && exec touch "$word" ;;
    esac
  fi
  previous=$word
done
exec "$@"
