#!/usr/bin/env bash
# Do the checks of the CUDA kernels find bugs? Plants one at a time in a copy of the sources
# and runs scripts/cuda_emulated.sh on it, in each mode that must find the bug; controls
# must pass. Takes a quarter of an hour; an argument runs the mutants whose name contains it.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=${1:-}
failed=0

# mutant NAME PROGRAM EXPECTED FILE SED MODE...: EXPECTED is caught or quiet.
mutant() {
  local name=$1 program=$2 expected=$3 file=$4 edit=$5
  shift 5
  [[ $name == *"$wanted"* ]] || return 0
  local copy
  copy=$(mktemp -d)
  cp -r xla_ops/csrc "$copy"
  sed -E -i "$edit" "$copy/csrc/cuda/$file"
  if [ "$expected" = caught ] && cmp -s "xla_ops/csrc/cuda/$file" "$copy/csrc/cuda/$file"; then
    echo "ERROR   $name: nothing to edit in $file"
    failed=1
    return 0
  fi
  local mode status got
  for mode in "$@"; do
    status=0
    CSRC=$copy/csrc PROGRAMS=$program scripts/cuda_emulated.sh "$mode" >"$copy/log" 2>&1 || status=$?
    case $status in 0) got=quiet ;; 3) got="does not compile" ;; *) got=caught ;; esac
    if [ "$got" = "$expected" ]; then
      echo "ok      $name ($mode): $got: $(grep -m1 -E 'FAILED|ERROR:|WARNING:|runtime error' "$copy/log" | cut -c1-110)"
    else
      echo "ERROR   $name ($mode): $got, expected $expected"
      failed=1
    fi
  done
  rm -rf "$copy"
}

columns=deform_conv_columns.cu gradients=deform_conv_gradients.cu gather=deform_conv_gather.cu
fused=deform_conv_fused.cu

mutant "control: no change" deform_conv quiet $columns "" plain address
mutant "control: a barrier too many" deform_conv quiet $columns \
  's/^  __syncthreads\(\);/  __syncthreads(); __syncthreads();/' plain thread
mutant "barrier dropped, columns" deform_conv caught $columns \
  's/^  __syncthreads\(\);//' plain thread
mutant "barrier dropped, gradients" deform_conv caught $gradients \
  's/^  __syncthreads\(\);//' plain thread
mutant "barrier for some threads" deform_conv caught $columns \
  's/^  __syncthreads\(\);/  if (threadIdx.x < 100) __syncthreads();/' plain
mutant "return before a barrier" deform_conv caught $columns \
  's/^  __syncthreads\(\);/  if (static_cast<int>(threadIdx.x) >= tile.samples()) return;\n  __syncthreads();/' plain
mutant "plain add for an atomic" deform_conv caught simt.h \
  's/^  for \(int i = 0; i < V; \+\+i\) atomicAdd\(target \+ i, value\[i\]\);/  for (int i = 0; i < V; ++i) target[i] += value[i];/' thread
mutant "bound of the output dropped" deform_conv caught deform_conv_tile.h \
  's/p\.inside = .*;/p.inside = true;/' plain address
mutant "bound of the map dropped" deform_conv caught $gather \
  's/^  if \(pixel >= .*return;//' address
mutant "bound of the channels dropped" deform_conv caught $gather \
  's/way == 0 \&\& c < channels/way == 0/' address
mutant "blocks overlap" deform_conv caught deform_conv_tile.h \
  's/t\.blocks = patches \* t\.runs;/t.blocks = 2 * patches * t.runs;/; s/image = rest \/ t\.patch_rows;/image = rest \/ t.patch_rows % g.N;/' thread
mutant "mask of half a warp" deform_conv caught $gradients \
  's/first \+= __shfl_xor_sync\(simt::kFullMask/first += __shfl_xor_sync(0xffffu/' plain
mutant "shared memory a row short" deform_conv caught $columns \
  's/tiling\.taps \* kPatch \* sizeof/(tiling.taps * kPatch - kSide) * sizeof/' address
mutant "sums over too few lanes" deform_conv caught $gradients \
  's/step = lanes \/ 8; step > 0/step = lanes \/ 8; step > 1/' plain
mutant "the last sample of a pixel lost" deform_conv caught $gather \
  's/first \+ lane < end/first + lane + 1 < end/' plain
mutant "barrier dropped between tiles" deform_conv_fused caught $fused \
  '/wait_copies/{n;s/__syncthreads\(\);//}' plain thread
mutant "barrier dropped after the corners" deform_conv_fused caught $fused \
  '/find_all_corners\(taps/{n;s/__syncthreads\(\);//}' plain thread
mutant "barrier dropped before the output" deform_conv_fused caught $fused \
  '/^  __syncthreads/{N;s/.*(\n  block\.write)/\1/}' thread
mutant "copies not waited for" deform_conv_fused caught $fused \
  's/if constexpr \(kWholeRuns\) simt::wait_copies\(\);//' plain
mutant "shared memory of the fused kernel a row short" deform_conv_fused caught $fused \
  's/sizeof\(Shared<T, kWidth>\), stream/sizeof(Shared<T, kWidth>) - kWidth * sizeof(T), stream/' address
mutant "bound of the kernel dropped" deform_conv_fused caught $fused \
  's/const bool exists = .*;/const bool exists = true;/' address
mutant "weights of the other stage" deform_conv_fused caught $fused \
  's/fetch_weights\(stage \^ 1\)/fetch_weights(stage)/' plain
exit $failed
