// Element types in the kernels: arithmetic on them, and runs of elements that are read and
// written at once.
#ifndef XLA_OPS_SIMT_ELEMENT_H_
#define XLA_OPS_SIMT_ELEMENT_H_

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "element_type.h"
#include "simt/simt.h"

#if !defined(XLA_OPS_EMULATES_CUDA)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace xla_ops {
namespace cuda {

// Type of coordinates and sums.
template <typename T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

__device__ __forceinline__ float to_real(float v) { return v; }
__device__ __forceinline__ double to_real(double v) { return v; }

template <typename T>
__device__ __forceinline__ T from_real(Arithmetic<T> v);

template <>
__device__ __forceinline__ float from_real<float>(float v) {
  return v;
}

template <>
__device__ __forceinline__ double from_real<double>(double v) {
  return v;
}

#if !defined(XLA_OPS_EMULATES_CUDA)

__device__ __forceinline__ float to_real(Bf16 v) {
  return __uint_as_float(static_cast<uint32_t>(v.bits) << 16);
}

__device__ __forceinline__ float to_real(F16 v) { return __half2float(__ushort_as_half(v.bits)); }

template <>
__device__ __forceinline__ Bf16 from_real<Bf16>(float v) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(v))};
}

template <>
__device__ __forceinline__ F16 from_real<F16>(float v) {
  return {__half_as_ushort(__float2half_rn(v))};
}

#else

inline float to_real(Bf16 v) {
  return simt::host::from_bits<float>(static_cast<uint32_t>(v.bits) << 16);
}

inline float to_real(F16 v) { return simt::host::from_bits<_Float16>(v.bits); }

template <>
inline Bf16 from_real<Bf16>(float v) {
  const uint32_t bits = static_cast<uint32_t>(simt::host::to_bits(v));
  if (v != v) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

template <>
inline F16 from_real<F16>(float v) {
  return {static_cast<uint16_t>(simt::host::to_bits(static_cast<_Float16>(v)))};
}

#endif

// V neighbours in memory, aligned to their size up to 16 bytes: one load or store for
// every 16 bytes.
template <typename T, int V>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Run {
  T element[V];
};

template <int V, typename T>
__device__ __forceinline__ void load(const T* from, Arithmetic<T> to[V]) {
  const Run<T, V> run = *reinterpret_cast<const Run<T, V>*>(from);
#pragma unroll
  for (int i = 0; i < V; ++i) to[i] = to_real(run.element[i]);
}

template <int V, typename T>
__device__ __forceinline__ void store(const Arithmetic<T> from[V], T* to) {
  Run<T, V> run;
#pragma unroll
  for (int i = 0; i < V; ++i) run.element[i] = from_real<T>(from[i]);
  *reinterpret_cast<Run<T, V>*>(to) = run;
}

// The same for global memory, where the compiler would cut the run into elements. Loads
// that a kernel repeats after it may be slower.
template <int V, typename T>
__device__ __forceinline__ void store_whole(const Arithmetic<T> from[V], T* to) {
#if !defined(XLA_OPS_EMULATES_CUDA)
  if constexpr (V * sizeof(T) == 16) {
    alignas(16) T run[V];
#pragma unroll
    for (int i = 0; i < V; ++i) run[i] = from_real<T>(from[i]);
    uint32_t word[4];
    memcpy(word, run, sizeof(word));
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(word[0]), "r"(word[1]),
                 "r"(word[2]), "r"(word[3])
                 : "memory");
    return;
  }
#endif
  store<V>(from, to);
}

// Elements of T that one load of 16 bytes brings.
template <typename T>
constexpr int kRun = 16 / sizeof(T);

// A run of 16 bytes as it lies in registers.
struct alignas(16) Words {
  uint32_t word[4];
};

// Element i of a run.
template <typename T>
__device__ __forceinline__ float element_of(const Words& run, int i) {
  if constexpr (sizeof(T) == 2) {
    return to_real(T{static_cast<uint16_t>(run.word[i / 2] >> i % 2 * 16)});
  } else {
    return simt::float_of(run.word[i]);
  }
}

template <typename T, int V>
__device__ __forceinline__ Arithmetic<T> element_of(const Run<T, V>& run, int i) {
  return to_real(run.element[i]);
}

// V neighbours that wait in registers until they are used: as words, which the compiler does
// not cut into elements before.
template <typename T, int V>
using Held = std::conditional_t<V == kRun<T> && sizeof(T) <= 4, Words, Run<T, V>>;

}  // namespace cuda
}  // namespace xla_ops

#endif  // XLA_OPS_SIMT_ELEMENT_H_
