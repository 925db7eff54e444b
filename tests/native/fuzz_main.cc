// Fuzzes the handlers with cases drawn at random, where there is no libFuzzer.
//
//   fuzz [--seconds=S] [--cases=N] [--seed=S] [--callers=T] [--threads=T]
//   fuzz --seed=S --case=I       repeats one case
//   fuzz FILE...                 runs cases that libFuzzer wrote
//
// The case number I of a seed is the same in every build.
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "run_case.h"
#include "simd/isa.h"

// Read by the sanitizers before main(). Absurd allocations fail as they would without
// them; a finding ends in SIGABRT, whose handler names the case. ThreadSanitizer would hang
// in that handler: its reports are noted, and end the case.
#define XLA_OPS_EXPORT extern "C" __attribute__((used, visibility("default")))
XLA_OPS_EXPORT const char* __asan_default_options() {
  return "abort_on_error=1:allocator_may_return_null=1:detect_stack_use_after_return=1";
}
XLA_OPS_EXPORT const char* __ubsan_default_options() {
  return "abort_on_error=1:print_stacktrace=1";
}
XLA_OPS_EXPORT const char* __tsan_default_options() { return "second_deadlock_stack=1"; }
namespace {
std::atomic<bool> race_found{false};
}
XLA_OPS_EXPORT void __tsan_on_report(void*) { race_found = true; }

namespace xla_ops::fuzz {
namespace {

// A case that takes longer hangs.
constexpr unsigned kHangSeconds = 300;
constexpr int64_t kMostBytes = 1024;

struct Options {
  double seconds = 60;
  int64_t cases = INT64_MAX;
  uint64_t seed = 0;
  int64_t only = -1;
  int callers = 1;
  int threads = 3;
  std::vector<std::string> files;
};

// What the callers run, for the handler of signals.
constexpr int kMostCallers = 64;
uint64_t seed_of_run;
std::atomic<int64_t> running[kMostCallers];  // number of the case + 1, or 0
const char* running_file = nullptr;

void die(int signal_number) {
  std::fprintf(stderr, "\nFINDING: %s (signal %d) in\n%s",
               signal_number == SIGALRM ? "a hanging case" : "a crash or a failed check",
               signal_number, current_case().c_str());
  if (running_file) std::fprintf(stderr, "repeat: fuzz %s\n", running_file);
  for (const std::atomic<int64_t>& number : running) {
    if (number == 0) continue;
    std::fprintf(stderr, "repeat: fuzz --seed=%llu --case=%lld\n",
                 static_cast<unsigned long long>(seed_of_run), static_cast<long long>(number - 1));
  }
  _exit(1);
}

void watch_for_crashes() {
  for (int number : {SIGABRT, SIGALRM, SIGSEGV, SIGFPE, SIGILL, SIGBUS}) {
    // A sanitizer that watches for a signal reports more than we know.
    const auto other = signal(number, die);
    if (other != SIG_DFL) signal(number, other);
  }
}

std::vector<uint8_t> bytes_of_case(uint64_t seed, int64_t number) {
  std::seed_seq sequence{seed, seed >> 32, static_cast<uint64_t>(number),
                         static_cast<uint64_t>(number) >> 32};
  std::mt19937_64 random(sequence);
  std::vector<uint8_t> bytes(kMostBytes);
  for (uint8_t& byte : bytes) byte = random() >> 56;
  return bytes;
}

void run_number(int64_t number, int caller, Pool& pool, Counts* counts) {
  running[caller] = number + 1;
  const std::vector<uint8_t> bytes = bytes_of_case(seed_of_run, number);
  alarm(kHangSeconds);
  run_case(bytes.data(), bytes.size(), pool, counts);
  if (race_found) std::abort();
  running[caller] = 0;
}

void run_files(const Options& options, Pool& pool) {
  Counts counts;
  for (const std::string& name : options.files) {
    std::ifstream file(name, std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "fuzz: cannot read %s\n", name.c_str());
      std::exit(2);
    }
    const std::vector<char> bytes((std::istreambuf_iterator<char>(file)),
                                  std::istreambuf_iterator<char>());
    running_file = name.c_str();
    run_case(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size(), pool, &counts);
    std::printf("%s: no finding\n", name.c_str());
  }
}

// The callers share the pool, like the devices of one XLA client.
Counts run_random(const Options& options, Pool& pool) {
  using Clock = std::chrono::steady_clock;
  const auto end = Clock::now() + std::chrono::duration<double>(options.seconds);
  std::mutex mutex;
  Counts total;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < options.callers; ++caller) {
    callers.emplace_back([&, caller] {
      Counts counts;
      for (int64_t i = caller; i < options.cases && Clock::now() < end; i += options.callers) {
        run_number(i, caller, pool, &counts);
      }
      std::lock_guard<std::mutex> lock(mutex);
      for (const auto& [target, count] : counts) {
        Count& sum = total[target];
        sum.cases += count.cases;
        sum.accepted += count.accepted;
        sum.refused += count.refused;
        sum.no_memory += count.no_memory;
        sum.not_run += count.not_run;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  return total;
}

// Returns whether the cases reached all handlers.
bool print_summary(const Counts& counts) {
  // Enough that chance explains no zero.
  constexpr int64_t kMany = 200;
  bool reached = true;
  int64_t total = 0;
  std::printf("%-32s %9s %9s %9s %9s %9s\n", "target", "cases", "accepted", "refused", "no memory",
              "not run");
  for (const std::string& target : known_targets()) {
    const auto found = counts.find(target);
    const Count count = found == counts.end() ? Count{} : found->second;
    total += count.cases;
    std::printf("%-32s %9lld %9lld %9lld %9lld %9lld\n", target.c_str(),
                static_cast<long long>(count.cases), static_cast<long long>(count.accepted),
                static_cast<long long>(count.refused), static_cast<long long>(count.no_memory),
                static_cast<long long>(count.not_run));
    if (count.cases > kMany && (count.accepted == 0 || count.refused == 0)) {
      std::printf("FINDING: no case of %s was %s\n", target.c_str(),
                  count.accepted ? "refused" : "accepted");
      reached = false;
    }
  }
  std::printf("%lld cases\n", static_cast<long long>(total));
  return reached;
}

bool read_option(const char* argument, const char* name, std::string* value) {
  const size_t length = std::strlen(name);
  if (std::strncmp(argument, name, length) != 0 || argument[length] != '=') return false;
  *value = argument + length + 1;
  return true;
}

Options read_options(int argc, char** argv) {
  Options options;
  options.seed = std::random_device{}();
  for (int i = 1; i < argc; ++i) {
    std::string value;
    if (read_option(argv[i], "--seconds", &value)) {
      options.seconds = std::stod(value);
    } else if (read_option(argv[i], "--cases", &value)) {
      options.cases = std::stoll(value);
    } else if (read_option(argv[i], "--seed", &value)) {
      options.seed = std::stoull(value);
    } else if (read_option(argv[i], "--case", &value)) {
      options.only = std::stoll(value);
    } else if (read_option(argv[i], "--callers", &value)) {
      options.callers = std::clamp(std::stoi(value), 1, kMostCallers);
    } else if (read_option(argv[i], "--threads", &value)) {
      options.threads = std::stoi(value);
    } else if (argv[i][0] == '-') {
      std::fprintf(stderr, "fuzz: unknown option %s\n", argv[i]);
      std::exit(2);
    } else {
      options.files.push_back(argv[i]);
    }
  }
  return options;
}

int run(const Options& options) {
  watch_for_crashes();
  check_registry();
  ThreadPool pool(options.threads);
  if (!options.files.empty()) {
    run_files(options, pool);
    return 0;
  }
  seed_of_run = options.seed;
  std::printf("%s kernels, %d callers, %d threads, --seed=%llu\n", IsaName(BestIsa()),
              options.callers, options.threads, static_cast<unsigned long long>(options.seed));
  std::fflush(stdout);
  if (options.only >= 0) {
    Counts counts;
    run_number(options.only, 0, pool, &counts);
    std::printf("no finding\n");
    return 0;
  }
  return print_summary(run_random(options, pool)) ? 0 : 1;
}

}  // namespace
}  // namespace xla_ops::fuzz

int main(int argc, char** argv) {
  return xla_ops::fuzz::run(xla_ops::fuzz::read_options(argc, argv));
}
