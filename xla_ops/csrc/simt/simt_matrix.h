// Tensor cores and what feeds them: products of small matrices that the lanes of a warp
// hold together, their loads from shared memory, and copies to shared memory that go on
// beside other work. Each has a host form, as in simt.h.
//
// With lane = 4 * g + t, the lanes hold, as the PTX ISA lays out mma.m16n8k16 for 16-bit
// elements and mma.m16n8k8 for TF32 (a word is two elements of 16 bits, the lower one
// first, or one of TF32; columns of A and rows of B are counted in words):
//   A, 16 x 8 words  a[0]: (g, t)  a[1]: (g + 8, t)  a[2]: (g, t + 4)  a[3]: (g + 8, t + 4)
//   B, 8 words x 8   b[0]: (t, g)  b[1]: (t + 4, g)
//   D, 16 x 8        d[0]: (g, 2 t)  d[1]: (g, 2 t + 1)  d[2]: (g + 8, 2 t)  d[3]: ...
#ifndef XLA_OPS_SIMT_SIMT_MATRIX_H_
#define XLA_OPS_SIMT_SIMT_MATRIX_H_

#include <cstdint>

#include "simt/element.h"
#include "simt/simt.h"

namespace xla_ops {
namespace simt {

#if !defined(XLA_OPS_EMULATES_CUDA)

__device__ __forceinline__ unsigned shared_address(const void* place) {
  return static_cast<unsigned>(__cvta_generic_to_shared(place));
}

// Four matrices of 8 rows of 16 bytes in shared memory; lane l names row l % 8 of matrix
// l / 8. The lane gets word t of row g of each.
__device__ __forceinline__ void load_matrices(const void* row, uint32_t word[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(shared_address(row))
               : "memory");
}

// The same for matrices of 16-bit elements, transposed: the lane gets the elements in
// column g of rows 2 t and 2 t + 1 of each.
__device__ __forceinline__ void load_matrices_transposed(const void* row, uint32_t word[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(word[0]), "=r"(word[1]), "=r"(word[2]), "=r"(word[3])
               : "r"(shared_address(row))
               : "memory");
}

#define XLA_OPS_MMA(shape_and_types)                                     \
  asm("mma.sync.aligned." shape_and_types                                \
      " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                   \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))

// D += A B, in float32. T names the type of A and B; for float they hold TF32.
template <typename T>
__device__ __forceinline__ void multiply_add(const uint32_t a[4], const uint32_t b[2],
                                             float d[4]) {
  if constexpr (std::is_same_v<T, Bf16>) {
    XLA_OPS_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  } else if constexpr (std::is_same_v<T, F16>) {
    XLA_OPS_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  } else {
    static_assert(std::is_same_v<T, float>);
    XLA_OPS_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
  }
}

#undef XLA_OPS_MMA

// A float's nearest TF32, ties away from zero.
__device__ __forceinline__ uint32_t to_tf32(float value) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(value));
  return bits;
}

// Copies 16 bytes from global to shared memory, both aligned to 16, some time before
// wait_copies() of this thread returns; writes zeros where not `exists`.
__device__ __forceinline__ void start_copy(void* to, const void* from, bool exists) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
               "l"(from), "r"(exists ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

#else

namespace host {

struct Rows {
  const char* row[kLanes];
};

SIMT_UNSEEN inline Rows exchange_rows(const void* row, Site site) {
  const uint64_t* given = warp_exchange(kFullMask, reinterpret_cast<uint64_t>(row), false, site);
  Rows rows;
  for (int i = 0; i < kLanes; ++i) rows.row[i] = reinterpret_cast<const char*>(given[i]);
  return rows;
}

template <typename WordOf>
void load_matrices(const void* row, uint32_t word[4], Site site, WordOf word_of) {
  const Rows rows = exchange_rows(row, site);
  const int lane = threadIdx.x % kLanes;
  for (int i = 0; i < 4; ++i) word[i] = word_of(rows.row + 8 * i, lane / 4, lane % 4);
}

template <typename T>
T read(const char* from) {
  T value;
  __builtin_memcpy(&value, __builtin_assume_aligned(from, sizeof(T)), sizeof(T));
  return value;
}

// Elements of a word, exactly. TF32 is a float whose lower 13 bits do not count.
template <typename T>
void split_word(uint32_t word, float element[2]) {
  if constexpr (std::is_same_v<T, float>) {
    element[0] = from_bits<float>(word & 0xffffe000u);
    element[1] = 0;
  } else {
    element[0] = cuda::to_real(T{static_cast<uint16_t>(word)});
    element[1] = cuda::to_real(T{static_cast<uint16_t>(word >> 16)});
  }
}

}  // namespace host

inline void load_matrices(const void* row, uint32_t word[4], SIMT_SITE) {
  host::load_matrices(row, word, {file, line}, [](const char* const* rows, int g, int t) {
    return host::read<uint32_t>(rows[g] + 4 * t);
  });
}

inline void load_matrices_transposed(const void* row, uint32_t word[4], SIMT_SITE) {
  host::load_matrices(row, word, {file, line}, [](const char* const* rows, int g, int t) {
    const uint32_t low = host::read<uint16_t>(rows[2 * t] + 2 * g);
    return low | uint32_t{host::read<uint16_t>(rows[2 * t + 1] + 2 * g)} << 16;
  });
}

template <typename T>
SIMT_UNSEEN void multiply_add(const uint32_t a[4], const uint32_t b[2], float d[4], SIMT_SITE) {
  const host::Words* lanes =
      host::warp_exchange_words(kFullMask, {{a[0], a[1], a[2], a[3], b[0], b[1]}}, {file, line});
  const int lane = threadIdx.x % host::kLanes, g = lane / 4, t = lane % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = g + i / 2 * 8, column = 2 * t + i % 2;
    double sum = d[i];
    for (int k = 0; k < 8; ++k) {
      float left[2], right[2];
      host::split_word<T>(lanes[4 * (row % 8) + k % 4].word[row / 8 + k / 4 * 2], left);
      host::split_word<T>(lanes[4 * column + k % 4].word[4 + k / 4], right);
      sum += double{left[0]} * right[0] + double{left[1]} * right[1];
    }
    d[i] = static_cast<float>(sum);
  }
}

inline uint32_t to_tf32(float value) {
  const uint32_t bits = static_cast<uint32_t>(host::to_bits(value));
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

// As late as CUDA may: wait_copies() copies.
inline void start_copy(void* to, const void* from, bool exists, SIMT_SITE) {
  host::queue_copy({to, exists ? from : nullptr}, {file, line});
}

inline void wait_copies() {
  for (host::Copy copy; host::next_copy(&copy);) {
    uint64_t words[2] = {};
    if (copy.from) __builtin_memcpy(words, __builtin_assume_aligned(copy.from, 16), 16);
    __builtin_memcpy(__builtin_assume_aligned(copy.to, 16), words, 16);
  }
}

#endif

}  // namespace simt
}  // namespace xla_ops

#endif  // XLA_OPS_SIMT_SIMT_MATRIX_H_
