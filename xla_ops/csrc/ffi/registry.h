// Table of the FFI handlers in this library. A handler file adds its own lines:
//
//   XLA_FFI_DEFINE_HANDLER_SYMBOL(DeformConv2dFwd, Impl, ffi::Ffi::Bind()...);
//   XLA_OPS_REGISTER("dcn_jax.deform_conv2d.fwd", DeformConv2dFwd);
//
// python_module.h hands the table to Python, so that a new operator edits no other file.
#ifndef XLA_OPS_FFI_REGISTRY_H_
#define XLA_OPS_FFI_REGISTRY_H_

#include <vector>

#include "xla/ffi/api/c_api.h"

namespace xla_ops {

struct Target {
  const char* name;
  XLA_FFI_Handler* handler;
};

inline std::vector<Target>& Targets() {
  static std::vector<Target> targets;
  return targets;
}

struct TargetRegistration {
  TargetRegistration(const char* name, XLA_FFI_Handler* handler) {
    Targets().push_back({name, handler});
  }
};

}  // namespace xla_ops

// The parameter type XLA_FFI_Handler* is the check that `handler` is an FFI handler.
#define XLA_OPS_REGISTER(name, handler) \
  static const ::xla_ops::TargetRegistration handler##Registration(name, handler)

#endif  // XLA_OPS_FFI_REGISTRY_H_
