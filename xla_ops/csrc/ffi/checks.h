// Checks of what XLA hands to a handler. Each says whether it holds, and the first that does
// not says what is wrong, so that a chain stops there:
//
//   Checks checks("nms");
//   if (!(checks.require(shape.size() == 2, "`scores` has shape ", shape) &&
//         checks.shape("valid", shape_of(valid), shape))) {
//     return checks.error();
//   }
#ifndef XLA_OPS_FFI_CHECKS_H_
#define XLA_OPS_FFI_CHECKS_H_

#include <cstddef>
#include <optional>
#include <string>
#include <type_traits>

#include "ffi/buffers.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {

class Checks {
 public:
  // Errors begin with the name of the operation.
  explicit Checks(const char* operation) : operation_(operation) {}

  // Whether `holds`; where not, `what` is wrong: texts, numbers and shapes, one after another.
  template <typename... What>
  bool require(bool holds, const What&... what) {
    if (!holds) wrong_ = (std::string() + ... + text(what));
    return holds;
  }

  bool shape(const char* name, const Shape& got, const Shape& expected) {
    return require(got == expected, "`", name, "` has shape ", got, "; expected ", expected);
  }

  bool buffer(const char* name, const xla::ffi::AnyBuffer& buffer, const Shape& expected,
              xla::ffi::DataType type) {
    return require(buffer.element_type() == type, "`", name,
                   "` has an element type that does not go with the others") &&
           shape(name, shape_of(buffer), expected);
  }

  // Takes operand `i` of those that a handler has any number of.
  bool take(const xla::ffi::RemainingArgs& operands, size_t i,
            std::optional<xla::ffi::AnyBuffer>* buffer) {
    const auto operand = operands.get<xla::ffi::AnyBuffer>(i);
    if (operand) *buffer = *operand;
    return require(operand.has_value(), "operand ", i, " is not a buffer");
  }

  // The same for result `i`.
  bool take(const xla::ffi::RemainingRets& results, size_t i,
            std::optional<xla::ffi::AnyBuffer>* buffer) {
    auto result = results.get<xla::ffi::AnyBuffer>(i);
    if (result) *buffer = **result;
    return require(result.has_value(), "result ", i, " is not a buffer");
  }

  // What the handler answers when a check does not hold.
  xla::ffi::Error error() const {
    return xla::ffi::Error::InvalidArgument(std::string(operation_) + ": " + wrong_);
  }

 private:
  static std::string text(const std::string& value) { return value; }
  static std::string text(const Shape& value) { return shape_text(value); }
  template <typename Number>
  static std::enable_if_t<std::is_arithmetic_v<Number>, std::string> text(Number value) {
    return std::to_string(value);
  }

  const char* operation_;
  std::string wrong_;
};

}  // namespace xla_ops

#endif  // XLA_OPS_FFI_CHECKS_H_
