// Where a handler's kernels run: XLA's stream on a GPU, the calling thread where the
// kernels are compiled for the host (simt_host.h).
#ifndef XLA_OPS_FFI_CUDA_STREAM_H_
#define XLA_OPS_FFI_CUDA_STREAM_H_

#include <optional>

#include "simt/stream.h"
#include "xla/ffi/api/ffi.h"

namespace xla_ops {
namespace cuda {

#if defined(XLA_OPS_EMULATES_CUDA)
struct Stream {};
#else
using Stream = ::xla::ffi::PlatformStream<cudaStream_t>;
#endif

}  // namespace cuda
}  // namespace xla_ops

#if defined(XLA_OPS_EMULATES_CUDA)
template <>
struct xla::ffi::CtxDecoding<::xla_ops::cuda::Stream> {
  using Type = cudaStream_t;
  static std::optional<Type> Decode(const XLA_FFI_Api*, XLA_FFI_ExecutionContext*,
                                    DiagnosticEngine&) {
    return cudaStream_t{};
  }
};
#endif

#endif  // XLA_OPS_FFI_CUDA_STREAM_H_
