#include <cmath>
#include <cstring>

#include "cases.h"

namespace xla_ops::fuzz {
namespace {

// SplitMix64 (Steele, Lea and Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // Nearly normal: a sum of four uniform numbers, of variance 1.
  double normal() {
    double sum = -2;
    for (int i = 0; i < 4; ++i) sum += double(next() >> 11) * 0x1p-53;
    return sum * 1.7320508075688772;
  }

 private:
  uint64_t state_;
};

double special_real(uint64_t word) {
  constexpr double kInfinity = __builtin_inf();
  constexpr double kValues[] = {__builtin_nan(""),
                                kInfinity,
                                -kInfinity,
                                1e30,
                                -1e30,
                                -1,
                                -0.0,
                                1e-40,
                                -1e-310,
                                3.4028234e38,
                                -3.4028234e38,
                                65504,
                                2147483648,
                                -1e9,
                                1e300,
                                9.3e18,
                                -0.5,
                                16777216,
                                -1e-30,
                                0x1p-24};
  return kValues[word % (sizeof(kValues) / sizeof(kValues[0]))];
}

// Too large numbers become infinite, as a conversion by the hardware would make them.
float to_float(double value) {
  const double largest = 0x1.fffffep127;
  if (std::fabs(value) > largest) return std::copysign(__builtin_inff(), float(value > 0) - 0.5f);
  return static_cast<float>(value);
}

void store_real(XLA_FFI_DataType type, double value, char* to) {
  if (type == XLA_FFI_DataType_F64) {
    std::memcpy(to, &value, sizeof(value));
    return;
  }
  const float single = to_float(value);
  if (type == XLA_FFI_DataType_F32) {
    std::memcpy(to, &single, sizeof(single));
  } else if (type == XLA_FFI_DataType_BF16) {
    uint32_t bits;
    std::memcpy(&bits, &single, sizeof(bits));
    const uint16_t half = bits >> 16;
    std::memcpy(to, &half, sizeof(half));
  } else {
    const _Float16 half = static_cast<_Float16>(single);
    std::memcpy(to, &half, sizeof(half));
  }
}

int32_t to_int32(double value) {
  return !(std::fabs(value) < 2e9) ? 0 : static_cast<int32_t>(std::lround(value));
}

}  // namespace

void fill(XLA_FFI_DataType type, const Content& content, int64_t count, void* elements) {
  Random random(content.seed);
  const int64_t bytes = element_bytes(type);
  char* to = static_cast<char*>(elements);
  for (int64_t i = 0; i < count; ++i, to += bytes) {
    const bool special = content.one_special && random.next() % content.one_special == 0;
    const uint64_t word = random.next();
    double value = content.center + content.scale * random.normal();
    if (content.whole) value = std::nearbyint(value);
    if (special && word % 4 == 0) {
      // Any bits: denormal numbers, NaN with a payload, a bool that is neither 0 nor 1.
      const uint64_t bits[2] = {word, random.next()};
      std::memcpy(to, bits, bytes);
    } else if (is_floating(type)) {
      store_real(type, special ? special_real(word >> 2) : value, to);
    } else if (type == XLA_FFI_DataType_S32) {
      const int32_t extremes[] = {INT32_MIN, INT32_MAX, -1, 1 << 24};
      const int32_t integer = special ? extremes[(word >> 2) % 4] : to_int32(value);
      std::memcpy(to, &integer, sizeof(integer));
    } else if (type == XLA_FFI_DataType_PRED) {
      *to = word >> 40 & 1;
    } else {
      const uint64_t bits[2] = {word, random.next()};
      std::memcpy(to, bits, bytes);
    }
  }
}

}  // namespace xla_ops::fuzz
