// The emulation of CUDA itself: what it computes, and what it refuses.
#include "simt/simt.h"

#include <cmath>
#include <string>

#include "check.h"

namespace simt = xla_ops::simt;

namespace {

constexpr int kThreads = 64;

void reverse_block(const int* in, int* out) {
  int* shared = simt::dynamic_shared<int>();
  shared[threadIdx.x] = in[blockIdx.x * kThreads + threadIdx.x];
  __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

void sum_warps(int* out) {
  int sum = static_cast<int>(threadIdx.x);
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(simt::kFullMask, sum, step);
  const int first = __shfl_sync(simt::kFullMask, static_cast<int>(threadIdx.x), 0);
  const unsigned odd = __ballot_sync(simt::kFullMask, threadIdx.x % 2 == 1);
  out[threadIdx.x] = odd == 0xaaaaaaaau ? sum + first : -1;
}

// Lanes hand a value on through memory that only __syncwarp orders.
void pass_on(int* out) {
  int* shared = simt::dynamic_shared<int>();
  const int warp = threadIdx.x / simt::kWarp * simt::kWarp;
  for (int round = 0; round < 3; ++round) {
    shared[threadIdx.x] = static_cast<int>(threadIdx.x) + round;
    __syncwarp();
    out[threadIdx.x] = shared[warp + (threadIdx.x + 1) % simt::kWarp];
    __syncwarp();
  }
}

void count_up(float* sum, double* more) {
  const float ones[4] = {1, 1, 1, 1};
  simt::atomic_add<4>(sum, ones);
  atomicAdd(more, 0.5);
}

void read_unwritten(float* out) { out[threadIdx.x] = simt::dynamic_shared<float>()[threadIdx.x]; }

void barrier_for_some(int*) {
  if (threadIdx.x < 10) __syncthreads();
}

void two_barriers(int*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void half_a_warp(int* out) { out[threadIdx.x] = __shfl_sync(0xffffu, 1, 0); }

void shuffle_for_some(int* out) {
  if (threadIdx.x % 2 == 0) out[threadIdx.x] = __shfl_sync(simt::kFullMask, 1, 0);
}

void check_results() {
  std::vector<int> in(2 * kThreads), out(2 * kThreads);
  for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<int>(i);
  check(!simt::launch(reverse_block, 2, kThreads, kThreads * sizeof(int), nullptr, in.data(),
                      out.data()),
        "a barrier");
  for (int i = 0; i < kThreads; ++i) check(out[kThreads + i] == 2 * kThreads - 1 - i, "reversed");

  check(!simt::launch(sum_warps, 1, kThreads, 0, nullptr, out.data()), "warp collectives");
  check(out[5] == 496 && out[40] == 496 + 32 * 32 + 32, "sums of warps");

  check(!simt::launch(pass_on, 1, kThreads, kThreads * sizeof(int), nullptr, out.data()),
        "__syncwarp");
  check(out[31] == 2 && out[32] == 35, "values handed on");

  std::vector<float> sum(4);
  double more = 0;
  check(!simt::launch(count_up, 3, kThreads, 0, nullptr, sum.data(), &more), "atomics");
  check(sum[3] == 3 * kThreads && more == 1.5 * kThreads, "atomic sums");

  std::vector<float> poison(kThreads);
  check(
      !simt::launch(read_unwritten, 1, kThreads, kThreads * sizeof(float), nullptr, poison.data()),
      "unwritten shared memory");
  check(std::isnan(poison[0]) && std::isnan(poison[kThreads - 1]), "shared memory is poisoned");

  check(!simt::launch(half_a_warp, 0, kThreads, 0, nullptr, out.data()), "an empty grid");
}

void check_refused(void (*kernel)(int*), const char* reason) {
  std::vector<int> out(kThreads);
  const simt::Failure failure = simt::launch(kernel, 1, kThreads, 0, nullptr, out.data());
  const std::string text = failure ? failure : "no failure";
  check(text.find(reason) != std::string::npos, "\"" + text + "\" names: " + reason);
}

}  // namespace

int main() {
  for (const char* order : kOrders) {
    take_turns(order);
    check_results();
    check_refused(barrier_for_some, "the block hangs: 10 threads wait for their block at");
    check_refused(two_barriers, "threads wait for each other at different places");
    check_refused(half_a_warp, "needs the mask of a full warp");
    check_refused(shuffle_for_some, "the block hangs: 32 threads wait for their warp at");
  }
  return failures() ? 1 : 0;
}
