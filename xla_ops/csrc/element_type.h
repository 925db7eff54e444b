// Element types that the kernels know, and the choice of a kernel template by them.
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

// return function<T>(...) for the T that belongs to `type`.
#define XLA_OPS_RETURN_FOR(type, function, ...)      \
  switch (type) {                                    \
    case ::xla_ops::ElementType::kF32:               \
      return function<float>(__VA_ARGS__);           \
    case ::xla_ops::ElementType::kF64:               \
      return function<double>(__VA_ARGS__);          \
    case ::xla_ops::ElementType::kBF16:              \
      return function<::xla_ops::Bf16>(__VA_ARGS__); \
    case ::xla_ops::ElementType::kF16:               \
      return function<::xla_ops::F16>(__VA_ARGS__);  \
  }                                                  \
  __builtin_unreachable()

#endif  // XLA_OPS_ELEMENT_TYPE_H_
