// The buffers that XLA hands to a handler: shapes and element types.
#ifndef XLA_OPS_FFI_BUFFERS_H_
#define XLA_OPS_FFI_BUFFERS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "element_type.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {

using Shape = std::vector<int64_t>;

inline std::string shape_text(const Shape& shape) {
  std::string text = "(";
  for (size_t i = 0; i < shape.size(); ++i) {
    text += (i ? ", " : "") + std::to_string(shape[i]);
  }
  return text + (shape.size() == 1 ? ",)" : ")");
}

template <typename Buffer>
Shape shape_of(const Buffer& buffer) {
  const auto dims = buffer.dimensions();
  return Shape(dims.begin(), dims.end());
}

// Whether it has no elements. Its sizes may then be so large that their product
// overflows, and its data may be nullptr.
template <typename Buffer>
bool is_empty(const Buffer& buffer) {
  const auto dims = buffer.dimensions();
  return std::find(dims.begin(), dims.end(), 0) != dims.end();
}

inline void fill_with_zeros(xla::ffi::AnyBuffer& buffer) {
  if (!is_empty(buffer)) std::memset(buffer.untyped_data(), 0, buffer.size_bytes());
}

// Nothing where the kernels are not compiled for it.
inline std::optional<ElementType> element_type(xla::ffi::DataType type) {
  switch (type) {
    case xla::ffi::DataType::F32:
      return ElementType::kF32;
    case xla::ffi::DataType::F64:
      return ElementType::kF64;
    case xla::ffi::DataType::BF16:
      return ElementType::kBF16;
    case xla::ffi::DataType::F16:
      return ElementType::kF16;
    default:
      return std::nullopt;
  }
}

// Type of coordinates and sums beside maps of that type.
inline xla::ffi::DataType real_type(ElementType type) {
  return type == ElementType::kF64 ? xla::ffi::DataType::F64 : xla::ffi::DataType::F32;
}

}  // namespace xla_ops

#endif  // XLA_OPS_FFI_BUFFERS_H_
