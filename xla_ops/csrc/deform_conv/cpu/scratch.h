// A worker's scratch in pieces, for the kernels of deform_conv2d.
#ifndef XLA_OPS_DEFORM_CONV_CPU_SCRATCH_H_
#define XLA_OPS_DEFORM_CONV_CPU_SCRATCH_H_

#include <cstddef>
#include <cstdint>

#include "simd/gemm.h"

namespace xla_ops {
namespace XLA_OPS_ISA {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }

// Hands out pieces of scratch; from nullptr it counts the bytes.
class ScratchPieces {
 public:
  explicit ScratchPieces(void* scratch) : at_(reinterpret_cast<uintptr_t>(scratch)) {}

  template <typename E>
  E* take(int64_t count) {
    E* here = reinterpret_cast<E*>(at_);
    at_ += round_up(count * static_cast<int64_t>(sizeof(E)), 64);
    return here;
  }
  size_t end() const { return at_; }

 private:
  uintptr_t at_;
};

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_DEFORM_CONV_CPU_SCRATCH_H_
