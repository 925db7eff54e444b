// Element types that the kernels know.
#ifndef XLA_OPS_ELEMENT_TYPE_H_
#define XLA_OPS_ELEMENT_TYPE_H_

#include <cstdint>

namespace xla_ops {

// Type of the maps and the results. Coordinates and sums are float, for kF64 double.
enum class ElementType { kF32, kF64, kBF16, kF16 };

// Storage of half-precision elements; arithmetic on them is done in float.
struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

}  // namespace xla_ops

#endif  // XLA_OPS_ELEMENT_TYPE_H_
