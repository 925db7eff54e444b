// Entry point for libFuzzer, where the compiler is Clang.
#include "run_case.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static xla_ops::fuzz::ThreadPool pool(3);
  static xla_ops::fuzz::Counts counts;
  static const bool checked = (xla_ops::fuzz::check_registry(), true);
  (void)checked;
  xla_ops::fuzz::run_case(data, size, pool, &counts);
  return 0;
}
