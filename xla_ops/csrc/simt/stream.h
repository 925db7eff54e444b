// What a launch needs and returns, for handlers, which no CUDA compiler sees.
#ifndef XLA_OPS_SIMT_STREAM_H_
#define XLA_OPS_SIMT_STREAM_H_

#if defined(XLA_OPS_EMULATES_CUDA)
using cudaStream_t = void*;
#else
#include <cuda_runtime_api.h>
#endif

namespace xla_ops {
namespace simt {

// nullptr, or why an operation on the device failed.
using Failure = const char*;

}  // namespace simt
}  // namespace xla_ops

#endif  // XLA_OPS_SIMT_STREAM_H_
