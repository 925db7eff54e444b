// Decisions drawn from a string of bytes: from libFuzzer, a file, or a random generator.
#ifndef XLA_OPS_TESTS_DRAW_H_
#define XLA_OPS_TESTS_DRAW_H_

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace xla_ops::fuzz {

// Where the bytes are used up it goes on with zeros, so that every string is a case.
class Draw {
 public:
  Draw(const uint8_t* data, size_t size) : data_(data), end_(data + size) {}

  uint64_t bits(int bytes) {
    uint64_t word = 0;
    for (int i = 0; i < bytes; ++i) word = word << 8 | (data_ < end_ ? *data_++ : 0);
    return word;
  }

  // In [low, high]; low from zeros.
  int64_t between(int64_t low, int64_t high) {
    const uint64_t span = static_cast<uint64_t>(high) - static_cast<uint64_t>(low);
    const uint64_t word = bits(span < 256 ? 1 : span < 65536 ? 2 : 8);
    return static_cast<int64_t>(static_cast<uint64_t>(low) +
                                (span == UINT64_MAX ? word : word % (span + 1)));
  }

  // False from zeros.
  bool one_in(int64_t n) { return between(0, n - 1) == n - 1; }

  // The first from zeros.
  template <typename T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[between(0, static_cast<int64_t>(values.size()) - 1)];
  }

 private:
  const uint8_t* data_;
  const uint8_t* end_;
};

}  // namespace xla_ops::fuzz

#endif  // XLA_OPS_TESTS_DRAW_H_
