// Python module xla_ops._cpu.
#include "ffi/python_module.h"
#include "simd/isa.h"

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "XLA FFI handlers for the CPU.";
  xla_ops::define_registrations(m);
  m.def(
      "instruction_set", [] { return xla_ops::IsaName(xla_ops::BestIsa()); },
      "Instruction set that the kernels use on this machine.");
}
