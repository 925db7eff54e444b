// Functions that are compiled once for each instruction set. Callers know of none: they ask
// for a table of functions by the type of the elements, and get that of the best one.
//
// A header declares the table, and the function that gives it:
//
//   struct ScaleKernels {
//     void (*scale)(void* y, const void* x, int64_t n);
//   };
//   const ScaleKernels& scale_kernels(ElementType type);
//
// A file whose name ends with _kernel.cc defines the functions in the namespace XLA_OPS_ISA
// (baseline, avx2 or avx512), and exports them, behind it, in the order of ElementType:
//
//   template <typename T>
//   constexpr ScaleKernels kKernels = {scale<T>};
//   ...
//   XLA_OPS_EXPORT(ScaleKernels, scale_kernels, kKernels<float>, kKernels<double>);
//
// Tables are constants: nothing of a kernel file runs when the library is loaded. Nor must
// kernel files instantiate std:: templates with external linkage: the linker would keep one
// copy for all, maybe the one that needs AVX-512.
#ifndef XLA_OPS_SIMD_DISPATCH_H_
#define XLA_OPS_SIMD_DISPATCH_H_

#include "element_type.h"
#include "simd/isa.h"

#define XLA_OPS_EXPORT(Table, name, ...) XLA_OPS_EXPORT_TO(XLA_OPS_ISA, Table, name, __VA_ARGS__)
#define XLA_OPS_EXPORT_TO(isa, Table, name, ...) XLA_OPS_EXPORT_AS(isa, Table, name, __VA_ARGS__)
#define XLA_OPS_EXPORT_AS(isa, Table, name, ...)    \
  namespace isa {                                   \
  extern const Table name##_by_type[];              \
  constexpr Table name##_by_type[] = {__VA_ARGS__}; \
  }                                                 \
  XLA_OPS_CHOOSE_IN_##isa(Table, name) static_assert(true, "a semicolon follows")

// The choice is compiled with the baseline, which every machine has.
#define XLA_OPS_CHOOSE_IN_avx2(Table, name)
#define XLA_OPS_CHOOSE_IN_avx512(Table, name)
#ifdef XLA_OPS_X86
#define XLA_OPS_CHOOSE_IN_baseline(Table, name)                           \
  namespace avx2 {                                                        \
  extern const Table name##_by_type[];                                    \
  }                                                                       \
  namespace avx512 {                                                      \
  extern const Table name##_by_type[];                                    \
  }                                                                       \
  const Table& name(ElementType type) {                                   \
    const Isa isa = BestIsa();                                            \
    const Table* tables = isa == Isa::kAvx512 ? avx512::name##_by_type    \
                          : isa == Isa::kAvx2 ? avx2::name##_by_type      \
                                              : baseline::name##_by_type; \
    return tables[static_cast<int>(type)];                                \
  }
#else
#define XLA_OPS_CHOOSE_IN_baseline(Table, name) \
  const Table& name(ElementType type) { return baseline::name##_by_type[static_cast<int>(type)]; }
#endif

#endif  // XLA_OPS_SIMD_DISPATCH_H_
