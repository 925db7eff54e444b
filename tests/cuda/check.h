// A minimal test program: checks count their failures, main returns 1 if there are any.
#ifndef TESTS_CUDA_CHECK_H_
#define TESTS_CUDA_CHECK_H_

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

inline int& failures() {
  static int count = 0;
  return count;
}

inline void check(bool ok, const std::string& what) {
  if (ok) return;
  ++failures();
  std::printf("FAILED %s\n", what.c_str());
}

// `actual` and `expected` differ by at most `tolerance` times the largest expected value.
template <typename Actual>
void check_close(const Actual& actual, const std::vector<double>& expected, double tolerance,
                 const std::string& what) {
  double largest = 0, error = 0;
  bool finite = actual.size() == expected.size();
  for (size_t i = 0; finite && i < expected.size(); ++i) {
    largest = std::fmax(largest, std::fabs(expected[i]));
    error = std::fmax(error, std::fabs(actual[i] - expected[i]));
    finite = std::isfinite(actual[i]);
  }
  check(finite && error <= tolerance * largest, what + ": error " + std::to_string(error) +
                                                    " beside " + std::to_string(largest) +
                                                    (finite ? "" : ", not finite"));
}

class Random {
 public:
  explicit Random(unsigned seed) : generator_(seed) {}

  template <typename T>
  std::vector<T> normal(size_t count, double scale = 1) {
    std::normal_distribution<double> distribution(0, scale);
    std::vector<T> values(count);
    for (T& v : values) v = static_cast<T>(distribution(generator_));
    return values;
  }

 private:
  std::mt19937 generator_;
};

// How threads take turns: see simt_host.h. The thread sanitizer is slow; of orders, only a
// random one lets it see all races between blocks.
#if defined(__SANITIZE_THREAD__)
constexpr bool kEverything = false;
constexpr const char* kOrders[] = {"7"};
#else
constexpr bool kEverything = true;
constexpr const char* kOrders[] = {"forward", "reverse", "7"};
#endif

inline void take_turns(const char* order) { setenv("XLA_OPS_SIMT_ORDER", order, 1); }

#endif  // TESTS_CUDA_CHECK_H_
