#!/usr/bin/env bash
# Do the checks of the CUDA kernels find bugs? Plants one at a time in a copy of the sources
# and runs scripts/cuda_emulated.sh on it, in each mode that must find the bug; controls
# must pass. Takes half an hour of one core; an argument runs the mutants whose name contains
# it.
set -euo pipefail
cd "$(dirname "$0")/.."
wanted=${1:-}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TSAN_OPTIONS=halt_on_error=1  # One race is enough.

error() {
  echo "ERROR   $1"
  touch "$work/failed"
}

# mutant NAME PROGRAM EXPECTED FILE SED MODE...: EXPECTED is caught or quiet. As many run at
# a time as there are cores.
mutant() {
  [[ $1 == *"$wanted"* ]] || return 0
  while (($(jobs -rp | wc -l) >= $(nproc))); do wait -n; done
  { run_mutant "$@" || error "$1: not run"; } &
}

run_mutant() {
  local name=$1 program=$2 expected=$3 file=$4 edit=$5
  shift 5
  local copy
  copy=$(mktemp -d -p "$work")
  cp -r xla_ops/csrc "$copy"
  sed -E -i "$edit" "$copy/csrc/cuda/$file"
  if [ -n "$edit" ] && cmp -s "xla_ops/csrc/cuda/$file" "$copy/csrc/cuda/$file"; then
    error "$name: nothing to edit in $file"
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
      error "$name ($mode): $got, expected $expected"
    fi
  done
  rm -rf "$copy"
}

columns=deform_conv_columns.cu gradients=deform_conv_gradients.cu gather=deform_conv_gather.cu
fused=deform_conv_fused.cu
maximum=max_roi_pool.cu tiles=roi_tiles.h taps=roi_taps.h forward=roi_pool_forward.cu
map=roi_pool_map_gradient.cu bin=roi_pool_bin_gradient.cu nms=nms.cu

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
mutant "lists that are sorted as one begin alike" deform_conv caught $gather \
  's/return joint \? row.*;/return 0;/' plain
mutant "kernel of another image" deform_conv_fused caught $fused \
  's/return image \/ \(g\.N \/ g\.kernels\);/return image % g.kernels;/' plain
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

mutant "control: no change, max_roi_pool" max_roi_pool quiet $maximum "" plain address
mutant "control: a barrier too many, tiles" max_roi_pool quiet $tiles \
  's/^    __syncthreads\(\);/    __syncthreads(); __syncthreads();/' plain thread
mutant "barrier dropped after the RoIs are counted" max_roi_pool caught $tiles \
  '/memory->found\[warp\] = /{n;s/__syncthreads\(\);//}' plain thread
mutant "barrier dropped after the list of RoIs" max_roi_pool caught $tiles \
  '/memory->roi\[before/{n;s/__syncthreads\(\);//}' plain thread
mutant "barrier dropped after the lines of a tile" max_roi_pool caught $tiles \
  '/memory->line\[thread \/ 2\]/{n;n;s/__syncthreads\(\);//}' plain thread
mutant "barrier dropped between bins" max_roi_pool caught $tiles \
  '/memory->line\[next\]\[1\]/{n;n;n;s/__syncthreads\(\);//}' plain thread
mutant "return before the barriers of a tile" max_roi_pool caught $maximum \
  's/^  A sum\[kTileSide\].*/&\n  if (tile.my_row() >= map.H) return;/' plain
mutant "mask of half a warp, tiles" max_roi_pool caught $tiles \
  's/__ballot_sync\(simt::kFullMask, hit/__ballot_sync(0xffffu, hit/' plain
mutant "blocks overlap, max_roi_pool" max_roi_pool caught $maximum \
  's/blocks_of_warps\(bins\)/2 * &/; s/if \(bin >= bins\) return;//; s/(int64_t bin =) (.*);/\1 (\2) % bins;/' thread
mutant "bound of the bins dropped, max_roi_pool" max_roi_pool caught $maximum \
  's/if \(bin >= bins\) return;//' address
mutant "bound of the RoIs dropped" max_roi_pool caught $maximum \
  's/if \(roi >= op\.N \* op\.B\) return;//' address
mutant "bound of the columns dropped, tiles" max_roi_pool caught $tiles \
  's/if \(tile\.column \+ k < map\.W\) //' plain address
mutant "bound of the rows dropped, tiles" max_roi_pool caught $tiles \
  's/row >= map\.H \|\| //' address
mutant "bound of the channels dropped, tiles" max_roi_pool caught $tiles \
  's/ \|\| tile\.channel >= C\) return/) return/' address
mutant "shared memory of a tile a line short" max_roi_pool caught $maximum \
  's/sizeof\(RoiTileMemory<BitLine>\)/& - sizeof(BitLine)/' address
mutant "RoIs of the first look again" max_roi_pool caught $tiles \
  's/first \+ memory->roi\[number/image * rois + memory->roi[number/' plain
mutant "places among the votes one too high" max_roi_pool caught $tiles \
  's/\(\(1u << lane\) - 1\)/(1u << lane)/' plain
mutant "RoIs of other maps" max_roi_pool caught $tiles \
  's/ \&\& levels\[mine\] == tile\.level//' plain
mutant "the last of equal maxima" max_roi_pool caught $maximum \
  's/value\[v\] > most\[v\]/value[v] >= most[v]/' plain
mutant "NaN is no maximum" max_roi_pool caught $maximum \
  's/ \|\| \(value\[v\] != value\[v\] .*\);/;/' plain
mutant "the last NaN" max_roi_pool caught $maximum \
  's/ \&\& most\[v\] == most\[v\]//' plain
mutant "reach of the first bin" max_roi_pool caught $maximum \
  's/bins - 1, size\)\.end/0, size).end/' plain
mutant "padding of the map counts" max_roi_pool caught roi_map.h \
  's/clamp_size\(size\[1\], levels\.map\[level\]\.W\)/levels.map[level].W/' plain

mutant "control: no change, roi_pool" roi_pool quiet $forward "" plain address thread
mutant "warp does not wait before new taps" roi_pool caught $taps \
  's/__syncwarp\(\);  \/\/ All.*//' plain thread
mutant "warp does not wait for its taps" roi_pool caught $taps \
  's/^    __syncwarp\(\);$//' thread
mutant "mask of half a warp, gradients of bins" roi_pool caught $bin \
  's/__shfl_xor_sync\(simt::kFullMask/__shfl_xor_sync(0xffffu/' plain
mutant "lanes without channels return early" roi_pool caught $forward \
  's/^  taps\.find/  if (lane * V >= op.C) return;\n&/' plain
mutant "blocks overlap, roi_pool" roi_pool caught $forward \
  's/blocks_of_warps\(cells\)/2 * &/; s/if \(rest >= cells\) return;//; s/(int64_t rest =) (.*);/\1 (\2) % cells;/' thread
mutant "bound of the bins dropped, roi_pool" roi_pool caught $forward \
  's/if \(rest >= cells\) return;//' address
mutant "bound of the channels dropped, roi_pool" roi_pool caught $forward \
  's/if \(!mine\) (return|continue);//' address
mutant "shared memory of taps a row short" roi_pool caught $forward \
  's/kRoiWarps \* 2 \* capacity/(kRoiWarps * 2 - 1) * capacity/' address
mutant "pieces a pixel too wide" roi_pool caught $taps \
  's/columns\.begin \+ capacity_,/columns.begin + capacity_ + 1,/' plain address
mutant "sums over too few lanes, gradients of bins" roi_pool caught $bin \
  's/step = simt::kWarp \/ 2; step > 0/step = simt::kWarp \/ 2; step > 1/' plain
mutant "reach of too few lanes" roi_pool caught $map \
  's/step = simt::kWarp \/ 2; step > 0/step = simt::kWarp \/ 2; step > 1/' plain
mutant "first bin of a group rounded down" roi_pool caught $map \
  's/\(group \* bins \+ groups - 1\) \/ groups/group * bins \/ groups/' plain
mutant "a class that a slab begins is lost" roi_pool caught $map \
  's/\(last_channel \+ width - 1\) \/ width/last_channel \/ width/' plain
mutant "mask ignored by the gradient" roi_pool caught $map \
  's/share\[v\] \*= factor/share[v] *= A(1)/' plain

mutant "control: no change, nms" nms quiet $nms "" plain address thread
mutant "barrier dropped, nms compares" nms caught $nms \
  '/later\[thread\] = candidate_of/{n;s/__syncthreads\(\);//}' plain thread
mutant "barrier dropped before nms selects" nms caught $nms \
  '/shared->suppressed\[thread\] = /{n;s/__syncthreads\(\);//}' plain thread
mutant "barrier dropped after nms selects" nms caught $nms \
  '/shared->count = op/{n;n;s/__syncthreads\(\);//}' plain thread
mutant "return before a barrier, nms" nms caught $nms \
  's/if \(first \+ thread < count\) later/if (first + thread >= count) return;\n  later/' plain
mutant "blocks overlap, nms" nms caught $nms \
  's/compare_kernel<A>, op\.N/compare_kernel<A>, 2 * op.N/; s/(image = blockIdx.*);/\1 % op.N;/' thread
mutant "bound of the candidates dropped" nms caught $nms \
  's/^  if \(place >= count\) return;//' address
mutant "shared memory of nms a box short" nms caught $nms \
  's/kNmsBlock \* sizeof\(Candidate/(kNmsBlock - 1) * sizeof(Candidate/' address
mutant "shared memory of nms a block short" nms caught $nms \
  's/\+ blocks \* sizeof/+ (blocks - 1) * sizeof/' address
mutant "threshold suppresses" nms caught $nms \
  's/overlap\) > threshold/overlap) >= threshold/' plain
mutant "classes ignored" nms caught $nms 's/ \|\| better\.class_id != box\.class_id//' plain
mutant "a box suppresses itself" nms caught $nms 's/\? thread \+ 1/? thread/' plain
mutant "more boxes than asked for" nms caught $nms 's/ \|\| left == 0//' plain address
mutant "earlier blocks forgotten" nms caught $nms \
  's/gone = removed\[block\]/gone = 0/' plain
mutant "all but the last block forgotten" nms caught $nms \
  's/uint64_t gone = removed\[b\]/uint64_t gone = 0/' plain
mutant "places among those kept one too high" nms caught $nms \
  's/\(\(uint64_t\{1\} << thread\) - 1\)/(uint64_t{1} << thread)/' plain
mutant "outputs behind 512 not written" nms caught $nms \
  's/place < op\.D; place/place < count + kScanThreads \&\& &/' plain
mutant "blocks behind 512 not cleared" nms caught $nms \
  's/for \(int b = thread; b < blocks; b \+= kScanThreads\)/if (const int b = thread; b < blocks)/' plain

wait
[ ! -e "$work/failed" ]
