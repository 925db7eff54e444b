// Prints the GFLOP/s of independent fused multiply-adds in registers, argv[1] threads
// at once: what no float32 kernel of this machine can pass. Compiled for the machine
// it runs on, by scripts/benchmark/fma.py.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kChains = 24;  // of 32 registers
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
constexpr int kChains = 12;  // of 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kChains = 12;
#endif
constexpr int kLanes = kVectorBytes / sizeof(float);
constexpr long kSteps = 20'000'000;

typedef float Vector __attribute__((vector_size(kVectorBytes)));

float chains(float factor_value, float term_value) {
  const Vector factor = Vector{} + factor_value;
  const Vector term = Vector{} + term_value;
  // Different numbers, or the compiler would compute one chain for all.
  Vector sums[kChains];
  for (int chain = 0; chain < kChains; ++chain) sums[chain] = Vector{} + static_cast<float>(chain);
  for (long step = 0; step < kSteps; ++step) {
#pragma GCC unroll 24
    for (int chain = 0; chain < kChains; ++chain) {
      sums[chain] = sums[chain] * factor + term;
    }
  }
  // Summing them up keeps the chains from being optimised away.
  float total = 0;
  for (const Vector& sum : sums) total += sum[0];
  return total;
}

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::max(1, std::atoi(argv[1])) : 1;
  std::vector<float> totals(threads);
  const auto start = std::chrono::steady_clock::now();
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i) {
    pool.emplace_back([&totals, i] { totals[i] = chains(0.5f, 1.0f + i); });
  }
  for (std::thread& thread : pool) thread.join();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (totals[0] == 0) return 1;
  const double flops = 2.0 * kLanes * kChains * kSteps * threads;
  std::printf("%.1f\n", flops / seconds.count() / 1e9);
  return 0;
}
