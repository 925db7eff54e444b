// Runs one case and checks what every handler promises.
#ifndef XLA_OPS_TESTS_RUN_CASE_H_
#define XLA_OPS_TESTS_RUN_CASE_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>

#include "ffi_host.h"

namespace xla_ops::fuzz {

struct Count {
  int64_t cases = 0, accepted = 0, refused = 0, no_memory = 0, not_run = 0;
};
using Counts = std::map<std::string, Count>;

// Decodes a case from `data`, runs its handler once on the calling thread alone and once
// on `pool`, and checks:
// - a call that fits is accepted; any other is too, or is refused with a message;
// - a call without memory is refused as such;
// - all elements of all results are written, with the same bits each time (any NaN is as
//   good as another), and no operand is.
// Prints the case and aborts where that does not hold.
void run_case(const uint8_t* data, size_t size, Pool& pool, Counts* counts);

// Text of the case that this thread runs, or "".
std::string current_case();

// Checks that draw_case() knows every registered target, and that all handlers tell
// their version as XLA asks for it. Aborts where not.
void check_registry();

}  // namespace xla_ops::fuzz

#endif  // XLA_OPS_TESTS_RUN_CASE_H_
