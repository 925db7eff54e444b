// Parallel loops and scratch memory for the CPU kernels.

#ifndef XLA_OPS_FFI_PARALLEL_H_
#define XLA_OPS_FFI_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>

#include "xla/ffi/api/ffi.h"

namespace xla_ops {

// How many workers parallel_for() uses for that many chunks; at least 1.
inline int64_t num_workers(const xla::ffi::ThreadPool& pool, int64_t chunks) {
  return std::max<int64_t>(1, std::min(chunks, pool.num_threads()));
}

// Calls body(chunk, worker) once for every chunk in [0, chunks), and returns when
// all calls have returned. `worker` in [0, num_workers(pool, chunks)) is never
// used by two calls at a time: scratch memory may be indexed by it.
//
// The calling thread works too, and waits only for chunks that already run, never
// for queued work: handlers run on the pool's own threads, so waiting for the
// queue could deadlock. Which worker takes a chunk varies from run to run;
// results must not depend on it. `body` must not throw.
template <typename Body>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t chunks, Body&& body) {
  if (chunks <= 0) return;
  const int64_t workers = num_workers(pool, chunks);
  if (workers == 1) {
    for (int64_t i = 0; i < chunks; ++i) body(i, int64_t{0});
    return;
  }

  // Outlives this call in queued helpers, which then find no chunk left and do
  // not touch `body`.
  struct State {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> joined{0};
    std::mutex mutex;
    std::condition_variable all_done;
    int64_t done = 0;
  };
  auto state = std::make_shared<State>();
  auto work = [state, chunks, body = &body] {
    int64_t finished = 0;
    int64_t worker = -1;
    for (;;) {
      const int64_t i = state->next.fetch_add(1, std::memory_order_relaxed);
      if (i >= chunks) break;
      if (worker < 0) worker = state->joined.fetch_add(1);
      (*body)(i, worker);
      ++finished;
    }
    if (finished == 0) return;
    std::lock_guard<std::mutex> lock(state->mutex);
    state->done += finished;
    if (state->done == chunks) state->all_done.notify_all();
  };
  for (int64_t i = 1; i < workers; ++i) pool.Schedule([work] { work(); });
  work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == chunks; });
}

// Uninitialised memory, aligned to a cache line. Throws std::bad_alloc.
class Scratch {
 public:
  explicit Scratch(size_t bytes)
      : data_(std::aligned_alloc(kAlign, std::max(kAlign, round_up(bytes)))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Scratch() { std::free(data_); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  void* data() const { return data_; }
  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  static constexpr size_t kAlign = 64;
  static size_t round_up(size_t n) { return (n + kAlign - 1) / kAlign * kAlign; }
  void* data_;
};

}  // namespace xla_ops

#endif  // XLA_OPS_FFI_PARALLEL_H_
