#!/bin/sh
# A launcher of CMake's compiler that builds again what one instruction set needs: kernels'
# objects of the others stay as they are, once they exist.
#
#   -DCMAKE_CXX_COMPILER_LAUNCHER='/checkout/scripts/one_isa.sh;avx2'
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
