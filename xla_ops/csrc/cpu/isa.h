// Instruction sets: every *_kernel.cc is compiled once for each, into the namespace
// XLA_OPS_ISA (baseline, avx2 or avx512), and the best one is picked at run time.
//
// A kernel header declares its functions for all of them and picks one:
//
//   XLA_OPS_PER_ISA(void Scale(float* y, const float* x, int64_t n);)
//   ...
//   XLA_OPS_PICK(Scale)(y, x, n);
//
// and the kernel file defines them in `namespace xla_ops::XLA_OPS_ISA { ... }`. Kernel
// files must not instantiate std:: templates with external linkage: the linker would
// keep one copy for all, maybe the one that needs AVX-512.
#ifndef XLA_OPS_CPU_ISA_H_
#define XLA_OPS_CPU_ISA_H_

#include <cstdlib>
#include <cstring>

namespace xla_ops {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The best instruction set of this machine. XLA_OPS_CPU_ISA=baseline|avx2|avx512 asks
// for a lesser one (tests and measurements; read once, a greater one is ignored).
inline Isa BestIsa() {
  static const Isa best = [] {
    Isa isa = Isa::kBaseline;
#ifdef XLA_OPS_X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
        __builtin_cpu_supports("f16c")) {
      isa = Isa::kAvx2;
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
        isa = Isa::kAvx512;
      }
    }
    if (const char* wanted = std::getenv("XLA_OPS_CPU_ISA")) {
      if (!std::strcmp(wanted, "baseline")) isa = Isa::kBaseline;
      if (!std::strcmp(wanted, "avx2") && isa == Isa::kAvx512) isa = Isa::kAvx2;
    }
#endif
    return isa;
  }();
  return best;
}

inline const char* IsaName(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "baseline";
}

}  // namespace xla_ops

#ifdef XLA_OPS_X86
#define XLA_OPS_PER_ISA(...) \
  namespace baseline {       \
  __VA_ARGS__                \
  }                          \
  namespace avx2 {           \
  __VA_ARGS__                \
  }                          \
  namespace avx512 {         \
  __VA_ARGS__                \
  }
#define XLA_OPS_PICK(function)                                         \
  (::xla_ops::BestIsa() == ::xla_ops::Isa::kAvx512 ? &avx512::function \
   : ::xla_ops::BestIsa() == ::xla_ops::Isa::kAvx2 ? &avx2::function   \
                                                   : &baseline::function)
#else
#define XLA_OPS_PER_ISA(...) \
  namespace baseline {       \
  __VA_ARGS__                \
  }
#define XLA_OPS_PICK(function) (&baseline::function)
#endif

#endif  // XLA_OPS_CPU_ISA_H_
