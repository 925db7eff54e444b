// What a handler answers when its kernels are launched.
#ifndef XLA_OPS_FFI_CUDA_RESULT_H_
#define XLA_OPS_FFI_CUDA_RESULT_H_

#include <string>

#include "simt/stream.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace cuda {

// An error of `operation` where a launch failed, else success.
inline ::xla::ffi::Error result_of(const std::string& operation, simt::Failure failure) {
  if (failure) return ::xla::ffi::Error::Internal(operation + ": " + failure);
  return ::xla::ffi::Error::Success();
}

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_FFI_CUDA_RESULT_H_
