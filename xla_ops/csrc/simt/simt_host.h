// CUDA on the host: what the kernel sources need to be compiled by a C++ compiler and run
// on the CPU, for tests. Include simt.h instead, which chooses.
//
// A CUDA thread is a fiber. Blocks run one after the other; the threads of a block take
// turns, changing at barriers and warp collectives alone, in an order that the environment
// variable XLA_OPS_SIMT_ORDER chooses: "forward" (default), "reverse", or a number that
// seeds a random order. Dynamic shared memory holds NaN when a block starts. A kernel that
// would hang or that depends on what CUDA leaves undefined ends with a message: a barrier
// or collective that threads reach at different places, that some do not reach, or that
// is called for less than a full warp.
//
// Under -fsanitize=thread a CUDA thread is a fiber of the sanitizer too, and barriers,
// __syncwarp and the start and the end of a launch are all that orders memory: the
// sanitizer then finds the races of a kernel, within a block and between blocks.
#ifndef XLA_OPS_SIMT_SIMT_HOST_H_
#define XLA_OPS_SIMT_SIMT_HOST_H_

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

// The scheduler's own memory is no concern of the thread sanitizer, and a jump to another
// stack none of the address sanitizer's.
#define SIMT_UNSEEN __attribute__((noinline, no_sanitize("thread", "address")))

namespace xla_ops {
namespace simt {
namespace host {

struct Index {
  unsigned x, y, z;
};

struct Site {
  const char* file;
  int line;
};

constexpr int kLanes = 32;
constexpr size_t kStackBytes = size_t{1} << 16;

// Calls of the sanitizers about fibers; nothing without them.
struct Sanitizer {
  void* thread = nullptr;      // fiber of the thread sanitizer
  void* fake_stack = nullptr;  // of the address sanitizer

  static void release([[maybe_unused]] void* tag) {
#if defined(__SANITIZE_THREAD__)
    __tsan_release(tag);
#endif
  }
  static void acquire([[maybe_unused]] void* tag) {
#if defined(__SANITIZE_THREAD__)
    __tsan_acquire(tag);
#endif
  }
};

// A stack of execution: of one CUDA thread, or the scheduler's.
struct Context {
  void* jump[5];  // of __builtin_setjmp
  ucontext_t start;
  bool started = false;
  bool finished = false;
  const void* stack = nullptr;
  size_t stack_bytes = 0;
  Sanitizer sanitizer;
};

SIMT_UNSEEN inline void enter(Context& to) {
  if (to.started) __builtin_longjmp(to.jump, 1);
  to.started = true;
  setcontext(&to.start);
  std::abort();
}

SIMT_UNSEEN inline void change(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(from.finished ? nullptr : &from.sanitizer.fake_stack, to.stack,
                                 to.stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.sanitizer.thread, __tsan_switch_to_fiber_no_sync);
#endif
  from.started = true;
  if (__builtin_setjmp(from.jump) == 0) enter(to);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.sanitizer.fake_stack, nullptr, nullptr);
#endif
}

enum class Wait { kNone, kBlock, kWarp };

// Memory from mmap: the thread sanitizer forgets who used it when it is given back.
class Stack {
 public:
  Stack()
      : base_(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
                   0)) {
    if (base_ == MAP_FAILED) throw std::bad_alloc();
  }
  ~Stack() { munmap(base_, kStackBytes); }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;

  void* base() const { return base_; }

 private:
  void* base_;
};

struct Fiber {
  Context context;
  std::unique_ptr<Stack> stack;
  Index index;
  int number;
  Wait wait;
  Site site;
};

// A point that all threads of a group must reach together.
struct Meeting {
  int arrived = 0;
  int generation = 0;
  Site site{};
  // A thread can be one meeting ahead of another, so two tags keep apart what each orders.
  char order[2];
};

struct Warp {
  Meeting meeting;
  uint64_t given[kLanes];
  uint64_t exchanged[kLanes];
};

// The launch that runs on this thread of the operating system.
struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  std::vector<int> order;
  Context scheduler;
  Meeting barrier;
  Fiber* running = nullptr;
  int threads = 0;
  int finished = 0;
  Index block{}, blocks{};
  char* shared = nullptr;
  void (*body)(void*) = nullptr;
  void* arguments = nullptr;
  const char* failure = nullptr;  // of a thread
  Site failure_site{};
  char launched = 0, ended = 0;  // tags that order memory
};

inline Machine& machine() {
  static thread_local Machine instance;
  return instance;
}

// The machine whose kernel this thread runs.
inline thread_local Machine* current = nullptr;

SIMT_UNSEEN inline Index thread_index() { return current->running->index; }
SIMT_UNSEEN inline Index block_index() { return current->block; }
SIMT_UNSEEN inline Index block_size() { return {unsigned(current->threads), 1, 1}; }
SIMT_UNSEEN inline Index grid_size() { return current->blocks; }
SIMT_UNSEEN inline char* shared_memory() { return current->shared; }

// Back to the scheduler; a thread that never comes back has been here last.
SIMT_UNSEEN inline void leave(Machine& m) {
  Sanitizer::release(&m.ended);
  change(m.running->context, m.scheduler);
}

[[noreturn]] SIMT_UNSEEN inline void fail(Machine& m, Site site, const char* what) {
  m.failure = what;
  m.failure_site = site;
  leave(m);
  std::abort();
}

// Returns when all `count` threads of the group have come. `complete` is called by the last.
template <typename Complete>
SIMT_UNSEEN void meet(Machine& m, Meeting& meeting, int count, Wait kind, bool orders, Site site,
                      Complete complete) {
  Fiber& fiber = *m.running;
  if (meeting.arrived > 0 && (meeting.site.line != site.line || meeting.site.file != site.file)) {
    fail(m, site, "threads wait for each other at different places");
  }
  meeting.site = site;
  char* tag = &meeting.order[meeting.generation & 1];
  if (orders) Sanitizer::release(tag);
  if (++meeting.arrived < count) {
    fiber.wait = kind;
    fiber.site = site;
    leave(m);
  } else {
    meeting.arrived = 0;
    ++meeting.generation;
    complete();
  }
  if (orders) Sanitizer::acquire(tag);
}

SIMT_UNSEEN inline void block_barrier(Site site) {
  Machine& m = *current;
  meet(m, m.barrier, m.threads, Wait::kBlock, true, site, [&m]() SIMT_UNSEEN {
    for (int i = 0; i < m.threads; ++i) m.fibers[i]->wait = Wait::kNone;
  });
}

// Gives `value` to the warp; when all lanes have come, returns what all gave.
SIMT_UNSEEN inline const uint64_t* warp_exchange(unsigned mask, uint64_t value, bool orders,
                                                 Site site) {
  Machine& m = *current;
  if (mask != 0xffffffffu) fail(m, site, "a warp collective needs the mask of a full warp");
  const int number = m.running->number;
  Warp& warp = m.warps[number / kLanes];
  warp.given[number % kLanes] = value;
  meet(m, warp.meeting, kLanes, Wait::kWarp, orders, site, [&]() SIMT_UNSEEN {
    const int first = number / kLanes * kLanes;
    for (int lane = 0; lane < kLanes; ++lane) {
      warp.exchanged[lane] = warp.given[lane];
      m.fibers[first + lane]->wait = Wait::kNone;
    }
  });
  return warp.exchanged;
}

// The first frame of every fiber.
SIMT_UNSEEN inline void run_thread() {
  Machine& m = *current;
  Fiber& fiber = *m.running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler.stack, &m.scheduler.stack_bytes);
#endif
  Sanitizer::acquire(&m.launched);
  m.body(m.arguments);
  fiber.context.finished = true;
  ++m.finished;
  leave(m);
}

inline void prepare(Machine& m, int number) {
  Fiber& fiber = *m.fibers[number];
  if (!fiber.stack) fiber.stack = std::make_unique<Stack>();
#if defined(__SANITIZE_ADDRESS__)
  // A thread of a kernel that failed never left its frames.
  __asan_unpoison_memory_region(fiber.stack->base(), kStackBytes);
#endif
  Context& context = fiber.context;
  getcontext(&context.start);
  context.start.uc_stack.ss_sp = fiber.stack->base();
  context.start.uc_stack.ss_size = kStackBytes;
  context.start.uc_link = nullptr;
  makecontext(&context.start, run_thread, 0);
  context.started = context.finished = false;
  context.stack = fiber.stack->base();
  context.stack_bytes = kStackBytes;
  context.sanitizer = Sanitizer();
#if defined(__SANITIZE_THREAD__)
  context.sanitizer.thread = __tsan_create_fiber(0);
#endif
  fiber.number = number;
  fiber.index = {unsigned(number), 0, 0};
  fiber.wait = Wait::kNone;
}

inline std::string describe_hang(const Machine& m) {
  std::string text = "the block hangs:";
  for (Wait kind : {Wait::kBlock, Wait::kWarp}) {
    int waiting = 0;
    Site site{};
    for (int i = 0; i < m.threads; ++i) {
      const Fiber& fiber = *m.fibers[i];
      if (fiber.context.finished || fiber.wait != kind) continue;
      ++waiting;
      site = fiber.site;
    }
    if (waiting == 0) continue;
    text += " " + std::to_string(waiting) + " threads wait for their " +
            (kind == Wait::kBlock ? "block" : "warp") + " at " + site.file + ":" +
            std::to_string(site.line) + ",";
  }
  return text + " " + std::to_string(m.finished) + " have returned";
}

// Empty, or why the block could not end.
inline std::string run_block(Machine& m) {
  m.barrier = Meeting();
  m.warps.assign(m.threads / kLanes, Warp());
  m.finished = 0;
  m.failure = nullptr;
  // In the order of turns: the thread sanitizer numbers fibers in the order in which they are
  // made, uses the numbers of past ones again, and sees no race between two of one number.
  // With a random order a thread seldom has the number of its namesake in another block.
  for (int number : m.order) prepare(m, number);
  std::string failure;
  while (m.finished < m.threads && failure.empty()) {
    bool progress = false;
    for (int number : m.order) {
      Fiber& fiber = *m.fibers[number];
      if (fiber.context.finished || fiber.wait != Wait::kNone) continue;
      progress = true;
      m.running = &fiber;
      change(m.scheduler, fiber.context);
      if (m.failure) break;
    }
    if (m.failure) {
      const Site& site = m.failure_site;
      failure = std::string(site.file) + ":" + std::to_string(site.line) + ": " + m.failure;
    } else if (!progress) {
      failure = describe_hang(m);
    }
  }
#if defined(__SANITIZE_THREAD__)
  for (int i = 0; i < m.threads; ++i) {
    __tsan_destroy_fiber(m.fibers[i]->context.sanitizer.thread);
    // Nothing orders this block and the next one, which shall not race on it.
    m.fibers[i]->stack.reset();
  }
#endif
  return failure;
}

// How the threads of a block take turns.
class Order {
 public:
  explicit Order(const char* name) {
    name_ = name ? name : "forward";
    if (name_ != "forward" && name_ != "reverse") random_.seed(std::strtoul(name, nullptr, 10));
  }

  void fill(std::vector<int>* order, int threads) {
    order->resize(threads);
    for (int i = 0; i < threads; ++i) (*order)[i] = i;
    if (name_ == "reverse") {
      std::reverse(order->begin(), order->end());
    } else if (name_ != "forward") {
      std::shuffle(order->begin(), order->end(), random_);
    }
  }

 private:
  std::string name_;
  std::mt19937 random_;
};

// Empty, or what went wrong.
inline std::string run_grid(int64_t blocks, int threads, size_t shared_bytes, void (*body)(void*),
                            void* arguments) {
  if (threads % kLanes != 0) return "the block is not made of whole warps";
  Machine& m = machine();
  m.threads = threads;
  m.blocks = {unsigned(blocks), 1, 1};
  m.body = body;
  m.arguments = arguments;
  while (m.fibers.size() < size_t(threads)) m.fibers.push_back(std::make_unique<Fiber>());
#if defined(__SANITIZE_THREAD__)
  m.scheduler.sanitizer.thread = __tsan_get_current_fiber();
#endif
  Order order(std::getenv("XLA_OPS_SIMT_ORDER"));
  // Kept to the end of the launch: memory that two blocks share would look like a race.
  std::vector<std::unique_ptr<char[]>> shared;
  std::string failure;
  current = &m;
  Sanitizer::release(&m.launched);
  for (int64_t block = 0; block < blocks && failure.empty(); ++block) {
#if !defined(__SANITIZE_THREAD__)
    shared.clear();
#endif
    shared.emplace_back(new char[shared_bytes]);
    std::memset(shared.back().get(), 0xff, shared_bytes);
    m.shared = shared.back().get();
    m.block = {unsigned(block), 0, 0};
    order.fill(&m.order, threads);
    failure = run_block(m);
  }
  Sanitizer::acquire(&m.ended);
  current = nullptr;
  return failure;
}

template <typename T>
uint64_t to_bits(T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  __builtin_memcpy(&bits, &value, sizeof(T));
  return bits;
}

template <typename T>
T from_bits(uint64_t bits) {
  T value;
  __builtin_memcpy(&value, &bits, sizeof(T));
  return value;
}

template <typename T>
SIMT_UNSEEN T shuffle(unsigned mask, T value, int from, Site site) {
  return from_bits<T>(warp_exchange(mask, to_bits(value), false, site)[from % kLanes]);
}

template <typename T, typename Bits>
void add_atomically(T* target, T value) {
  using Alias [[gnu::may_alias]] = Bits;
  Alias* place = reinterpret_cast<Alias*>(target);
  Bits old = __atomic_load_n(place, __ATOMIC_RELAXED);
  for (;;) {
    T sum;
    __builtin_memcpy(&sum, &old, sizeof(T));
    sum += value;
    Bits next;
    __builtin_memcpy(&next, &sum, sizeof(T));
    if (__atomic_compare_exchange_n(place, &old, next, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
      return;
    }
  }
}

}  // namespace host
}  // namespace simt
}  // namespace xla_ops

// The names of CUDA that kernels may use.

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__

#define threadIdx (::xla_ops::simt::host::thread_index())
#define blockIdx (::xla_ops::simt::host::block_index())
#define blockDim (::xla_ops::simt::host::block_size())
#define gridDim (::xla_ops::simt::host::grid_size())

#define SIMT_SITE int line = __builtin_LINE(), const char *file = __builtin_FILE()

inline void __syncthreads(SIMT_SITE) { ::xla_ops::simt::host::block_barrier({file, line}); }

inline void __syncwarp(unsigned mask = 0xffffffffu, SIMT_SITE) {
  ::xla_ops::simt::host::warp_exchange(mask, 0, true, {file, line});
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, SIMT_SITE) {
  return ::xla_ops::simt::host::shuffle(mask, value, from, {file, line});
}

template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, SIMT_SITE) {
  const int lane = threadIdx.x % ::xla_ops::simt::host::kLanes;
  return ::xla_ops::simt::host::shuffle(mask, value, lane ^ lanes, {file, line});
}

SIMT_UNSEEN inline unsigned __ballot_sync(unsigned mask, bool vote, SIMT_SITE) {
  const uint64_t* votes = ::xla_ops::simt::host::warp_exchange(mask, vote, false, {file, line});
  unsigned ballot = 0;
  for (int lane = 0; lane < ::xla_ops::simt::host::kLanes; ++lane) {
    ballot |= unsigned(votes[lane]) << lane;
  }
  return ballot;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

inline int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }

// The number of the lowest bit that is set, from 1 on, or 0.
inline int __ffs(int bits) { return __builtin_ffs(bits); }

inline void atomicAdd(float* target, float value) {
  ::xla_ops::simt::host::add_atomically<float, uint32_t>(target, value);
}

inline void atomicAdd(double* target, double value) {
  ::xla_ops::simt::host::add_atomically<double, uint64_t>(target, value);
}

#endif  // XLA_OPS_SIMT_SIMT_HOST_H_
