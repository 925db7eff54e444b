// Instruction sets that kernels are compiled for, and the best one of this machine.
#ifndef XLA_OPS_SIMD_ISA_H_
#define XLA_OPS_SIMD_ISA_H_

#ifdef XLA_OPS_X86
#include <cpuid.h>
#endif

#include <cstdlib>
#include <cstring>

namespace xla_ops {

enum class Isa { kBaseline, kAvx2, kAvx512 };

#ifdef XLA_OPS_X86
// What the processor has, and the operating system saves the registers of. By hand, as
// __builtin_cpu_supports answers no to everything where Zig links, for the wheels.
inline Isa DetectIsa() {
  unsigned eax, ebx, ecx, edx;
  const unsigned needed = bit_OSXSAVE | bit_FMA | bit_F16C;
  if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & needed) != needed) {
    return Isa::kBaseline;
  }
  unsigned saved, high;  // bits of XCR0
  __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  const unsigned ymm = 0x06, zmm = ymm | 0xe0;
  if ((saved & ymm) != ymm || !__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) ||
      !(ebx & bit_AVX2)) {
    return Isa::kBaseline;
  }
  const unsigned avx512 = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  return (saved & zmm) == zmm && (ebx & avx512) == avx512 ? Isa::kAvx512 : Isa::kAvx2;
}
#endif

// The best instruction set of this machine. XLA_OPS_CPU_ISA=baseline|avx2|avx512 asks
// for a lesser one (tests and measurements; read once, a greater one is ignored).
inline Isa BestIsa() {
  static const Isa best = [] {
    Isa isa = Isa::kBaseline;
#ifdef XLA_OPS_X86
    isa = DetectIsa();
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
