// Kernels of nms. Compiled without contraction of products and sums: a fused one would
// round differently and change which boxes survive.
#include "nms/cuda/kernels.h"
#include "simt/simt.h"

namespace xla_ops {
namespace cuda {
namespace {

template <typename A>
struct Candidate {
  A left, top, right, bottom, area;
  int32_t class_id;
};

template <typename A>
__device__ __forceinline__ Candidate<A> candidate_of(const NmsOperands& op,
                                                     const A* __restrict__ boxes, int64_t image,
                                                     int64_t place) {
  const int64_t number = image * op.B + op.order[image * op.B + place];
  const A* box = boxes + 4 * number;
  return {
      box[0], box[1], box[2], box[3], (box[2] - box[0]) * (box[3] - box[1]), op.class_ids[number]};
}

template <typename A>
__device__ __forceinline__ A greater(A a, A b) {
  return a > b ? a : b;
}
template <typename A>
__device__ __forceinline__ A lesser(A a, A b) {
  return a < b ? a : b;
}

template <typename A>
__device__ __forceinline__ bool overlaps(const Candidate<A>& better, const Candidate<A>& box,
                                         A threshold) {
  const A width = lesser(better.right, box.right) - greater(better.left, box.left);
  const A height = lesser(better.bottom, box.bottom) - greater(better.top, box.top);
  const A overlap = greater(width, A(0)) * greater(height, A(0));
  if (!(overlap > A(0)) || better.class_id != box.class_id) return false;
  return overlap / ((better.area + box.area) - overlap) > threshold;
}

// A block of threads compares one block of candidates with itself or a later one.
template <typename A>
__global__ void __launch_bounds__(kNmsBlock)
    compare_kernel(NmsOperands op, int blocks, const A* __restrict__ boxes, A threshold,
                   uint64_t* __restrict__ suppressed) {
  Candidate<A>* later = simt::dynamic_shared<Candidate<A>>();
  const int later_block = static_cast<int>(blockIdx.x % blocks);
  const int block = static_cast<int>(blockIdx.x / blocks % blocks);
  const int64_t image = blockIdx.x / blocks / blocks;
  const int64_t count = op.candidates[image];
  const int64_t first = int64_t{later_block} * kNmsBlock;
  if (later_block < block || first >= count) return;
  const int thread = threadIdx.x;
  if (first + thread < count) later[thread] = candidate_of(op, boxes, image, first + thread);
  __syncthreads();

  const int64_t place = int64_t{block} * kNmsBlock + thread;
  if (place >= count) return;
  const Candidate<A> mine = candidate_of(op, boxes, image, place);
  const int end = static_cast<int>(count - first < kNmsBlock ? count - first : kNmsBlock);
  uint64_t bits = 0;
  for (int k = later_block == block ? thread + 1 : 0; k < end; ++k) {
    bits |= uint64_t{overlaps(mine, later[k], threshold)} << k;
  }
  suppressed[(image * op.B + place) * blocks + later_block] = bits;
}

// Which candidates of its block each candidate suppresses, and which of them are kept.
struct ScanBlock {
  uint64_t suppressed[kNmsBlock];
  uint64_t kept;
  int64_t count;  // of all kept so far
};

// A block of threads has an image. Thread 0 goes through a block of candidates, then all
// gather whom those that are kept suppress.
__global__ void __launch_bounds__(kScanThreads)
    scan_kernel(NmsOperands op, int blocks, const uint64_t* __restrict__ suppressed,
                int32_t* __restrict__ indices, bool* __restrict__ selected) {
  ScanBlock* shared = simt::dynamic_shared<ScanBlock>();
  uint64_t* removed = reinterpret_cast<uint64_t*>(shared + 1);
  const int64_t image = blockIdx.x;
  const int thread = threadIdx.x;
  const int64_t candidates = op.candidates[image];
  suppressed += image * op.B * blocks;
  indices += image * op.D;
  selected += image * op.D;
  for (int b = thread; b < blocks; b += kScanThreads) removed[b] = 0;
  int64_t count = 0;
  for (int block = 0; int64_t{block} * kNmsBlock < candidates && count < op.D; ++block) {
    const int64_t first = int64_t{block} * kNmsBlock;
    const int here =
        static_cast<int>(candidates - first < kNmsBlock ? candidates - first : kNmsBlock);
    if (thread < here) shared->suppressed[thread] = suppressed[(first + thread) * blocks + block];
    __syncthreads();
    if (thread == 0) {
      uint64_t gone = removed[block], kept = 0;
      int64_t left = op.D - count;
      for (int k = 0; k < here; ++k) {
        if ((gone >> k & 1) != 0 || left == 0) continue;
        kept |= uint64_t{1} << k;
        gone |= shared->suppressed[k];
        --left;
      }
      shared->kept = kept;
      shared->count = op.D - left;
    }
    __syncthreads();
    const uint64_t kept = shared->kept;
    if (thread < here && (kept >> thread & 1) != 0) {
      const int64_t place = count + __popcll(kept & ((uint64_t{1} << thread) - 1));
      indices[place] = op.order[image * op.B + first + thread];
      selected[place] = true;
    }
    count = shared->count;
    for (int b = block + 1 + thread; int64_t{b} * kNmsBlock < candidates; b += kScanThreads) {
      uint64_t gone = removed[b];
      for (int k = 0; k < here; ++k) {
        if ((kept >> k & 1) != 0) gone |= suppressed[(first + k) * blocks + b];
      }
      removed[b] = gone;
    }
    // No barrier here: of `removed`, thread 0 reads next what it wrote itself, and the others
    // read what their neighbours wrote after the two barriers of the next turn.
  }
  for (int64_t place = count + thread; place < op.D; place += kScanThreads) {
    indices[place] = 0;
    selected[place] = false;
  }
}

}  // namespace

template <typename A>
simt::Failure compare_boxes(const NmsOperands& op, const A* boxes, A threshold,
                            uint64_t* suppressed, cudaStream_t stream) {
  const int64_t blocks = nms_blocks(op.B);
  return simt::launch(compare_kernel<A>, op.N * blocks * blocks, kNmsBlock,
                      kNmsBlock * sizeof(Candidate<A>), stream, op, static_cast<int>(blocks),
                      boxes, threshold, suppressed);
}

template simt::Failure compare_boxes(const NmsOperands&, const float*, float, uint64_t*,
                                     cudaStream_t);
template simt::Failure compare_boxes(const NmsOperands&, const double*, double, uint64_t*,
                                     cudaStream_t);

simt::Failure select_boxes(const NmsOperands& op, const uint64_t* suppressed, int32_t* indices,
                           bool* selected, cudaStream_t stream) {
  const int64_t blocks = nms_blocks(op.B);
  return simt::launch(scan_kernel, op.N, kScanThreads,
                      sizeof(ScanBlock) + blocks * sizeof(uint64_t), stream, op,
                      static_cast<int>(blocks), suppressed, indices, selected);
}

}  // namespace cuda
}  // namespace xla_ops
