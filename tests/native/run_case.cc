#include "run_case.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <vector>

#include "ffi/registry.h"

namespace xla_ops::fuzz {
namespace {

// What results hold before a call: numbers of every type, which are no NaN.
constexpr unsigned char kPoison[2] = {0xa5, 0x5a};
// What scratch memory holds: NaN, and a number.
constexpr unsigned char kScratch[2] = {0xff, 0x3d};

thread_local const Case* running = nullptr;

[[noreturn]] void fail(const std::string& what) {
  // The current case is printed by the handler of SIGABRT, as for any other crash.
  std::fprintf(stderr, "\nFINDING: %s\n", what.c_str());
  std::abort();
}

XLA_FFI_Handler* find_handler(const std::string& name) {
  for (const Target& target : Targets()) {
    if (target.name == name) return target.handler;
  }
  fail("no handler is registered as " + name);
}

bool is_nan(XLA_FFI_DataType type, const char* element) {
  uint64_t bits = 0;
  std::memcpy(&bits, element, element_bytes(type));
  switch (type) {
    case XLA_FFI_DataType_F16:
      return (bits & 0x7fff) > 0x7c00;
    case XLA_FFI_DataType_BF16:
      return (bits & 0x7fff) > 0x7f80;
    case XLA_FFI_DataType_F32:
      return (bits & 0x7fffffff) > 0x7f800000;
    case XLA_FFI_DataType_F64:
      return (bits & 0x7fffffffffffffff) > 0x7ff0000000000000;
    default:
      return false;
  }
}

void compare(const Case& call, size_t number, const std::vector<char>& first, const char* second) {
  const XLA_FFI_DataType type = call.results[number].type;
  const int64_t width = element_bytes(type);
  const auto poisoned = [&](const char* element, unsigned char poison) {
    return std::all_of(element, element + width,
                       [&](char c) { return static_cast<unsigned char>(c) == poison; });
  };
  for (size_t at = 0; at < first.size(); at += width) {
    const char *a = first.data() + at, *b = second + at;
    if (!std::memcmp(a, b, width) || (is_nan(type, a) && is_nan(type, b))) continue;
    const bool unwritten = poisoned(a, kPoison[0]) && poisoned(b, kPoison[1]);
    fail("element " + std::to_string(at / width) + " of result " + std::to_string(number) +
         (unwritten ? " is not written" : " differs between two runs"));
  }
}

void check_outcome(const Case& call, const Outcome& outcome) {
  if (outcome.ok()) {
    if (outcome.refused_memory) fail("success without memory");
    return;
  }
  if (outcome.message.empty()) fail("an error without a message");
  const auto expected = outcome.refused_memory ? XLA_FFI_Error_Code_RESOURCE_EXHAUSTED
                                               : XLA_FFI_Error_Code_INVALID_ARGUMENT;
  if (outcome.code != expected) {
    fail("error code " + std::to_string(outcome.code) + ": " + outcome.message);
  }
  if (call.fits && !outcome.refused_memory) fail("refused: " + outcome.message);
}

bool is_small(const Case& call) {
  for (const std::vector<Tensor>* tensors : {&call.operands, &call.results}) {
    for (const Tensor& tensor : *tensors) {
      if (count_elements(tensor.shape) > kMaxElements) return false;
    }
  }
  return true;
}

// The buffers of one call. Operands are compared with a copy when it is over.
class Buffers {
 public:
  Buffers(const Case& call, unsigned char poison) {
    for (const Tensor& tensor : call.operands) {
      operands.push_back(std::make_unique<Buffer>(tensor));
      const Buffer& buffer = *operands.back();
      if (buffer.bytes()) {
        fill(tensor.type, tensor.content, count_elements(tensor.shape), buffer.data());
      }
      copies_.emplace_back(buffer.data(), buffer.data() + buffer.bytes());
    }
    for (const Tensor& tensor : call.results) {
      results.push_back(std::make_unique<Buffer>(tensor));
      const Buffer& buffer = *results.back();
      if (buffer.bytes()) std::memset(buffer.data(), poison, buffer.bytes());
    }
  }

  void check_operands() const {
    for (size_t i = 0; i < operands.size(); ++i) {
      if (!std::equal(copies_[i].begin(), copies_[i].end(), operands[i]->data())) {
        fail("operand " + std::to_string(i) + " is written to");
      }
    }
  }

  std::vector<std::unique_ptr<Buffer>> operands, results;

 private:
  std::vector<std::vector<char>> copies_;
};

std::vector<Buffer*> pointers(const std::vector<std::unique_ptr<Buffer>>& buffers) {
  std::vector<Buffer*> all;
  for (const auto& buffer : buffers) all.push_back(buffer.get());
  return all;
}

}  // namespace

void run_case(const uint8_t* data, size_t size, Pool& pool, Counts* counts) {
  Draw draw(data, size);
  const bool no_pool = draw.one_in(8), late = draw.one_in(4);
  Memory memory[2] = {{kScratch[0]}, {kScratch[1]}};
  if (draw.one_in(16)) memory[draw.between(0, 1)].failing = draw.between(0, 3);
  const Case call = draw_case(draw);
  Count& count = (*counts)[call.target];
  ++count.cases;
  if (!is_small(call)) {
    ++count.not_run;
    return;
  }
  running = &call;
  XLA_FFI_Handler* handler = find_handler(call.target);

  ThreadPool nobody(0);
  LatePool busy(3);
  Pool* pools[2] = {no_pool ? nullptr : &nobody, late ? &busy : &pool};
  std::vector<std::vector<char>> first;
  Outcome outcomes[2];
  for (int run = 0; run < 2; ++run) {
    std::optional<Buffers> buffers(std::in_place, call, kPoison[run]);
    outcomes[run] = call_handler(handler, pointers(buffers->operands), pointers(buffers->results),
                                 call.attributes, pools[run], memory[run]);
    check_outcome(call, outcomes[run]);
    buffers->check_operands();
    for (size_t i = 0; i < call.results.size() && outcomes[run].ok(); ++i) {
      const Buffer& buffer = *buffers->results[i];
      if (run == 0) {
        first.emplace_back(buffer.data(), buffer.data() + buffer.bytes());
      } else if (outcomes[0].ok()) {
        compare(call, i, first[i], buffer.data());
      }
    }
    buffers.reset();
    busy.run_all();
  }
  const bool no_memory = outcomes[0].refused_memory || outcomes[1].refused_memory;
  if (!no_memory && outcomes[0].ok() != outcomes[1].ok()) fail("refused once, accepted once");
  ++(no_memory ? count.no_memory : outcomes[0].ok() ? count.accepted : count.refused);
  running = nullptr;
}

std::string current_case() { return running ? describe(*running) : ""; }

void check_registry() {
  std::vector<std::string> known = known_targets();
  for (const Target& target : Targets()) {
    if (std::find(known.begin(), known.end(), target.name) == known.end()) {
      fail(std::string("no case is drawn for ") + target.name +
           "; add a line to the table of tests/native/cases.cc");
    }
    if (api_minor_version(target.handler) != XLA_FFI_API_MINOR) {
      fail(std::string(target.name) + " does not tell its version");
    }
  }
  for (const std::string& name : known) find_handler(name);
}

}  // namespace xla_ops::fuzz
