// Functions that the kernels of the CPU and of CUDA share.
#ifndef XLA_OPS_INLINE_H_
#define XLA_OPS_INLINE_H_

// Always inlined: the CPU kernels compile such functions once for each instruction
// set, and no out-of-line copy may be shared between them.
#if defined(__CUDACC__)
#define XLA_OPS_INLINE __host__ __device__ __forceinline__
#else
#define XLA_OPS_INLINE inline __attribute__((always_inline))
#endif

#endif  // XLA_OPS_INLINE_H_
