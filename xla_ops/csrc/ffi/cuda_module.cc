// Python module xla_ops._cuda, or, with the kernels compiled for the host,
// xla_ops._cuda_emulated.
#include "ffi/python_module.h"

PYBIND11_MODULE(XLA_OPS_MODULE, m) {
  m.doc() = "XLA FFI handlers of the CUDA kernels.";
  xla_ops::define_registrations(m);
}
