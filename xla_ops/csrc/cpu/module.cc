// Python module xla_ops._cpu: hands the FFI handlers to jax.ffi.register_ffi_target.
#include <pybind11/pybind11.h>

#include "registry.h"
#include "simd/isa.h"

namespace py = pybind11;

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "XLA FFI handlers for the CPU.";
  m.def(
      "registrations",
      [] {
        py::dict capsules;
        for (const xla_ops::Target& target : xla_ops::Targets()) {
          capsules[target.name] =
              py::capsule(reinterpret_cast<void*>(target.handler), "xla._CUSTOM_CALL_TARGET");
        }
        return capsules;
      },
      "FFI target name -> capsule of its handler.");
  m.def(
      "instruction_set", [] { return xla_ops::IsaName(xla_ops::BestIsa()); },
      "Instruction set that the kernels use on this machine.");
  // Read by xla_ops/_call.py: a jaxlib whose API is older must not load the handlers.
  m.attr("ffi_api_version") = py::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
}
