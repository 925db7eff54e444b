// Vectors of the instruction set that the including *_kernel.cc is compiled for, and
// element types narrower than the arithmetic. GCC and Clang vector extensions only.
#ifndef XLA_OPS_SIMD_VECTOR_H_
#define XLA_OPS_SIMD_VECTOR_H_

#include <cstdint>
#include <cstring>
#include <utility>

#include "element_type.h"

namespace xla_ops {

namespace XLA_OPS_ISA {

#define XLA_OPS_ALWAYS_INLINE inline __attribute__((always_inline))

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Lanes of a full vector of A (float or double).
template <typename A>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(A));

template <typename E, int L>
struct VecOf {
  typedef E type __attribute__((vector_size(sizeof(E) * L)));
};
template <typename E>
struct VecOf<E, 1> {
  typedef E type;
};
template <typename E, int L>
using Vec = typename VecOf<E, L>::type;

// The type that elements of type T are computed in.
template <typename T>
struct ArithmeticOf {
  using type = float;
};
template <>
struct ArithmeticOf<double> {
  using type = double;
};
template <typename T>
using Arithmetic = typename ArithmeticOf<T>::type;

template <typename To, typename From>
XLA_OPS_ALWAYS_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast between different sizes");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

template <typename To, int L, typename From>
XLA_OPS_ALWAYS_INLINE Vec<To, L> convert(From from) {
  if constexpr (L == 1) {
    return static_cast<To>(from);
  } else {
    return __builtin_convertvector(from, Vec<To, L>);
  }
}

template <typename E, int L>
XLA_OPS_ALWAYS_INLINE Vec<E, L> load_raw(const void* p) {
  Vec<E, L> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// L elements at p, as the type they are computed in. No alignment needed.
template <int L>
XLA_OPS_ALWAYS_INLINE Vec<float, L> load(const float* p) {
  return load_raw<float, L>(p);
}
template <int L>
XLA_OPS_ALWAYS_INLINE Vec<double, L> load(const double* p) {
  return load_raw<double, L>(p);
}
template <int L>
XLA_OPS_ALWAYS_INLINE Vec<float, L> load(const Bf16* p) {
  const auto bits = convert<uint32_t, L>(load_raw<uint16_t, L>(p));
  return bit_cast<Vec<float, L>>(bits << 16);
}
// Through integers: XLA's threads treat float subnormals as zero, and float16
// subnormals must survive.
template <int L>
XLA_OPS_ALWAYS_INLINE Vec<float, L> load(const F16* p) {
  using U = Vec<uint32_t, L>;
  const U half = convert<uint32_t, L>(load_raw<uint16_t, L>(p));
  const U sign = (half & 0x8000u) << 16;
  const U magnitude = half & 0x7fffu;
  const U infinite_or_nan = (magnitude << 13) + (uint32_t{255 - 31} << 23);
  const U normal = (magnitude << 13) + (uint32_t{127 - 15} << 23);
  const auto scaled = convert<float, L>(convert<int32_t, L>(magnitude)) * 0x1p-24f;
  const U subnormal = bit_cast<U>(scaled);
  const U bits = magnitude >= 0x7c00u ? infinite_or_nan : magnitude >= 0x400u ? normal : subnormal;
  return bit_cast<Vec<float, L>>(sign | bits);
}

// Stores L elements, rounded to nearest even.
template <int L>
XLA_OPS_ALWAYS_INLINE void store(float* p, Vec<float, L> v) {
  std::memcpy(p, &v, sizeof(v));
}
template <int L>
XLA_OPS_ALWAYS_INLINE void store(double* p, Vec<double, L> v) {
  std::memcpy(p, &v, sizeof(v));
}
template <int L>
XLA_OPS_ALWAYS_INLINE void store(Bf16* p, Vec<float, L> v) {
  using U = Vec<uint32_t, L>;
  const U bits = bit_cast<U>(v);
  const U rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const U nan = (bits >> 16) | 0x40u;
  const auto half = convert<uint16_t, L>((bits & 0x7fffffffu) > 0x7f800000u ? nan : rounded);
  std::memcpy(p, &half, sizeof(half));
}
template <int L>
XLA_OPS_ALWAYS_INLINE void store(F16* p, Vec<float, L> v) {
  using U = Vec<uint32_t, L>;
  const U bits = bit_cast<U>(v);
  const U sign = (bits >> 16) & 0x8000u;
  const U magnitude = bits & 0x7fffffffu;
  const U rounded =
      (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - (uint32_t{127 - 15} << 23)) >> 13;
  // Adding 0.5 shifts a float16 subnormal's bits to the end of the float's.
  const auto shifted = bit_cast<Vec<float, L>>(magnitude) + 0.5f;
  const U subnormal = bit_cast<U>(shifted) - 0x3f000000u;
  const U large =
      magnitude > 0x7f800000u ? (magnitude & 0u) + 0x7e00u : (magnitude & 0u) + 0x7c00u;
  const U result = magnitude >= 0x477ff000u  ? large
                   : magnitude < 0x38800000u ? subnormal
                                             : rounded;
  const auto half = convert<uint16_t, L>(sign | result);
  std::memcpy(p, &half, sizeof(half));
}

// Sum of all lanes, in an order that depends on L alone.
template <typename A, int L>
XLA_OPS_ALWAYS_INLINE A sum_lanes(Vec<A, L> v) {
  if constexpr (L == 1) {
    return v;
  } else {
    Vec<A, L / 2> half[2];
    std::memcpy(half, &v, sizeof(v));
    return sum_lanes<A, L / 2>(half[0] + half[1]);
  }
}

// The sums of every four lanes of four vectors: those of a, b, c and d in the first four lanes,
// and so on. Shuffled together, then added.
template <int L, int... I>
XLA_OPS_ALWAYS_INLINE Vec<float, L> sum_fours(Vec<float, L> a, Vec<float, L> b, Vec<float, L> c,
                                              Vec<float, L> d, std::integer_sequence<int, I...>) {
  // In every group of four lanes: a0+a2 b0+b2 a1+a3 b1+b3, then the sums of a, b, c, d.
  const auto ab = __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * L)...) +
                  __builtin_shufflevector(a, b, (I / 4 * 4 + I % 4 / 2 + I % 2 * L + 2)...);
  const auto cd = __builtin_shufflevector(c, d, (I / 4 * 4 + I % 4 / 2 + I % 2 * L)...) +
                  __builtin_shufflevector(c, d, (I / 4 * 4 + I % 4 / 2 + I % 2 * L + 2)...);
  return __builtin_shufflevector(ab, cd, (I / 4 * 4 + I % 2 + I % 4 / 2 * L)...) +
         __builtin_shufflevector(ab, cd, (I / 4 * 4 + I % 2 + I % 4 / 2 * L + 2)...);
}
template <int L>
XLA_OPS_ALWAYS_INLINE Vec<float, L> sum_fours(Vec<float, L> a, Vec<float, L> b, Vec<float, L> c,
                                              Vec<float, L> d) {
  return sum_fours<L>(a, b, c, d, std::make_integer_sequence<int, L>());
}

// The sums of all lanes of four vectors.
template <int L>
XLA_OPS_ALWAYS_INLINE Vec<float, 4> sum_lanes_of_4(Vec<float, L> a, Vec<float, L> b,
                                                   Vec<float, L> c, Vec<float, L> d) {
  const Vec<float, L> sum = sum_fours<L>(a, b, c, d);
  Vec<float, 4> groups[L / 4];
  std::memcpy(groups, &sum, sizeof(sum));
  if constexpr (L == 16) {
    return (groups[0] + groups[2]) + (groups[1] + groups[3]);
  } else if constexpr (L == 8) {
    return groups[0] + groups[1];
  } else {
    return groups[0];
  }
}
// sums[0..3] += the sums of all lanes of a, b, c and d.
template <typename A, int L>
XLA_OPS_ALWAYS_INLINE void add_lanes_of_4(A sums[4], Vec<A, L> a, Vec<A, L> b, Vec<A, L> c,
                                          Vec<A, L> d) {
  if constexpr (sizeof(A) == 4 && L >= 4) {
    store<4>(sums, load<4>(sums) + sum_lanes_of_4<L>(a, b, c, d));
  } else {
    sums[0] += sum_lanes<A, L>(a);
    sums[1] += sum_lanes<A, L>(b);
    sums[2] += sum_lanes<A, L>(c);
    sums[3] += sum_lanes<A, L>(d);
  }
}

template <int L>
struct Width {
  static constexpr int value = L;
};

// Calls f(Width<L>(), i) for runs of L elements from i that together are [begin, end):
// full vectors, then at most one run of each smaller power of two.
template <int L, typename F>
XLA_OPS_ALWAYS_INLINE void for_each_vector(int64_t begin, int64_t end, F&& f) {
  int64_t i = begin;
  for (; i + L <= end; i += L) f(Width<L>(), i);
  if constexpr (L > 1) {
    if (i < end) for_each_vector<L / 2>(i, end, f);
  }
}

}  // namespace XLA_OPS_ISA
}  // namespace xla_ops

#endif  // XLA_OPS_SIMD_VECTOR_H_
