// What the Python modules of all libraries have: the FFI handlers, for
// jax.ffi.register_ffi_target.
#ifndef XLA_OPS_FFI_PYTHON_MODULE_H_
#define XLA_OPS_FFI_PYTHON_MODULE_H_

#include <pybind11/pybind11.h>

#include "ffi/registry.h"

namespace xla_ops {

inline void define_registrations(pybind11::module_& m) {
  m.def(
      "registrations",
      [] {
        pybind11::dict capsules;
        for (const Target& target : Targets()) {
          capsules[target.name] = pybind11::capsule(reinterpret_cast<void*>(target.handler),
                                                    "xla._CUSTOM_CALL_TARGET");
        }
        return capsules;
      },
      "FFI target name -> capsule of its handler.");
  // A jaxlib whose API is older must not load the handlers.
  m.attr("ffi_api_version") = pybind11::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
}

}  // namespace xla_ops

#endif  // XLA_OPS_FFI_PYTHON_MODULE_H_
