// What a handler answers.
#ifndef XLA_OPS_CUDA_RESULT_H_
#define XLA_OPS_CUDA_RESULT_H_

#include <string>

#include "stream.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace cuda {

// An error of `operation` where the operands are wrong or a launch failed, else success.
inline ::xla::ffi::Error result_of(const std::string& operation, const std::string& error,
                                   simt::Failure failure) {
  if (!error.empty()) return ::xla::ffi::Error::InvalidArgument(operation + ": " + error);
  if (failure) return ::xla::ffi::Error::Internal(operation + ": " + failure);
  return ::xla::ffi::Error::Success();
}

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_CUDA_RESULT_H_
