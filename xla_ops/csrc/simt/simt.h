// What kernels use of the machine: the launch, shared memory, atomics. Two forms of each:
// CUDA's for nvcc, and the host's (simt_host.h), with which the same kernel sources run on
// the CPU and can be tested without a GPU.
//
// Rules for kernel sources, so that both forms mean the same:
// - launch only with simt::launch(), grids of one dimension, blocks of whole warps;
// - shared memory only from simt::dynamic_shared(), no __shared__ variables;
// - warp collectives only for full, converged warps, with simt::kFullMask;
// - PTX and half-precision types only in this header and element.h, each with a host form;
// - no block waits for another.
#ifndef XLA_OPS_SIMT_SIMT_H_
#define XLA_OPS_SIMT_SIMT_H_

#include <cstddef>
#include <cstdint>

#include "simt/stream.h"

#if defined(XLA_OPS_EMULATES_CUDA)
#include "simt/simt_host.h"
#else
#include <cuda_runtime.h>
#endif

namespace xla_ops {
namespace simt {

constexpr int kWarp = 32;
constexpr unsigned kFullMask = 0xffffffffu;

constexpr int64_t kMaxBlocks = 0x7fffffff;

// Arguments of a launch are converted to the kernel's parameters.
template <typename T>
struct Parameter {
  using Type = T;
};

// Where inlining would cost registers.
#if !defined(XLA_OPS_EMULATES_CUDA)
#define SIMT_NOINLINE __noinline__
#else
#define SIMT_NOINLINE __attribute__((noinline))
#endif

#if !defined(XLA_OPS_EMULATES_CUDA)

// More has to be asked for.
constexpr size_t kSharedByDefault = 48 << 10;

template <typename T>
__device__ __forceinline__ T* dynamic_shared() {
  extern __shared__ __align__(16) unsigned char shared[];
  return reinterpret_cast<T*>(shared);
}

inline Failure failure_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // The next call shall not find it again.
  return cudaGetErrorString(error);
}

template <typename... Parameters>
Failure launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
               cudaStream_t stream, typename Parameter<Parameters>::Type... arguments) {
  if (blocks == 0) return nullptr;
  if (blocks > kMaxBlocks) return "the grid has too many blocks";
  if (shared_bytes > kSharedByDefault) {
    const Failure failure = failure_of(cudaFuncSetAttribute(
        reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
        static_cast<int>(shared_bytes)));
    if (failure) return failure;
  }
  void* pointers[] = {&arguments...};
  return failure_of(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(blocks),
                                     dim3(threads), pointers, shared_bytes, stream));
}

inline Failure set_zero(void* target, size_t bytes, cudaStream_t stream) {
  return bytes == 0 ? nullptr : failure_of(cudaMemsetAsync(target, 0, bytes, stream));
}

__device__ __forceinline__ float float_of(uint32_t bits) { return __uint_as_float(bits); }

// Adds V neighbours in global memory, aligned to V elements.
template <int V>
__device__ __forceinline__ void atomic_add(float* target, const float* value) {
#if __CUDA_ARCH__ >= 900
  constexpr int kVector = V % 4 == 0 ? 4 : 1;
#else
  constexpr int kVector = 1;
#endif
#pragma unroll
  for (int i = 0; i < V; i += kVector) {
    if constexpr (kVector == 4) {
      asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(target + i),
                   "f"(value[i]), "f"(value[i + 1]), "f"(value[i + 2]), "f"(value[i + 3])
                   : "memory");
    } else {
      atomicAdd(target + i, value[i]);
    }
  }
}

#else

template <typename T>
T* dynamic_shared() {
  return reinterpret_cast<T*>(host::shared_memory());
}

template <typename... Parameters>
Failure launch(void (*kernel)(Parameters...), int64_t blocks, int threads, size_t shared_bytes,
               cudaStream_t, typename Parameter<Parameters>::Type... arguments) {
  if (blocks == 0) return nullptr;
  if (blocks > kMaxBlocks) return "the grid has too many blocks";
  auto body = [&] { kernel(arguments...); };
  static thread_local std::string failure;
  failure = host::run_grid(
      blocks, threads, shared_bytes, [](void* f) { (*static_cast<decltype(body)*>(f))(); }, &body);
  return failure.empty() ? nullptr : failure.c_str();
}

inline Failure set_zero(void* target, size_t bytes, cudaStream_t) {
  std::memset(target, 0, bytes);
  return nullptr;
}

inline float float_of(uint32_t bits) { return host::from_bits<float>(bits); }

template <int V>
void atomic_add(float* target, const float* value) {
  for (int i = 0; i < V; ++i) atomicAdd(target + i, value[i]);
}

#endif

template <int V>
__device__ __forceinline__ void atomic_add(double* target, const double* value) {
#pragma unroll
  for (int i = 0; i < V; ++i) atomicAdd(target + i, value[i]);
}

}  // namespace simt
}  // namespace xla_ops

#endif  // XLA_OPS_SIMT_SIMT_H_
