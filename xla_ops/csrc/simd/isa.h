// Instruction sets that kernels are compiled for, and the best one of this machine.
#ifndef XLA_OPS_SIMD_ISA_H_
#define XLA_OPS_SIMD_ISA_H_

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

#endif  // XLA_OPS_SIMD_ISA_H_
