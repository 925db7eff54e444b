// A stand-in for XLA: calls FFI handlers through the C interface as XLA's CPU client
// does, with thread pools of several kinds and with scratch memory that may run out.
#ifndef XLA_OPS_TESTS_FFI_HOST_H_
#define XLA_OPS_TESTS_FFI_HOST_H_

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cases.h"
#include "xla/ffi/api/c_api.h"

namespace xla_ops::fuzz {

struct Task {
  XLA_FFI_Task* function;
  void* data;
};

class Pool {
 public:
  virtual ~Pool() = default;
  virtual int64_t num_threads() const = 0;
  virtual void schedule(Task task) = 0;
};

// Threads as XLA's: they treat denormal numbers as zero. With no threads, tasks wait.
class ThreadPool : public Pool {
 public:
  explicit ThreadPool(int threads);
  ~ThreadPool() override;
  int64_t num_threads() const override { return threads_.size(); }
  void schedule(Task task) override;

 private:
  void run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Task> queue_;
  bool closed_ = false;
  std::vector<std::thread> threads_;
};

// Says that it has threads, and begins its tasks only when the handler has returned and
// its buffers are gone: a busy pool.
class LatePool : public Pool {
 public:
  explicit LatePool(int64_t num_threads) : num_threads_(num_threads) {}
  int64_t num_threads() const override { return num_threads_; }
  void schedule(Task task) override { tasks_.push_back(task); }
  void run_all();

 private:
  int64_t num_threads_;
  std::vector<Task> tasks_;
};

// Memory of a tensor: a block of exactly its size, so that AddressSanitizer sees a step
// outside.
class Buffer {
 public:
  explicit Buffer(const Tensor& tensor);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }
  XLA_FFI_Buffer* ffi() { return &ffi_; }

 private:
  Shape shape_;
  int64_t bytes_;
  char* block_;
  char* data_;
  XLA_FFI_Buffer ffi_;
};

// How scratch memory behaves during a call.
struct Memory {
  unsigned char fill = 0;            // what it holds at first
  int64_t failing = -1;              // number of the request that is refused; -1: none
  int64_t limit = int64_t{1} << 28;  // larger requests are refused
};

struct Outcome {
  XLA_FFI_Error_Code code = XLA_FFI_Error_Code_OK;
  std::string message;
  bool refused_memory = false;

  bool ok() const { return code == XLA_FFI_Error_Code_OK; }
};

// Calls the handler. `pool` is nullptr where XLA has none.
Outcome call_handler(XLA_FFI_Handler* handler, const std::vector<Buffer*>& operands,
                     const std::vector<Buffer*>& results, std::vector<Attribute> attributes,
                     Pool* pool, const Memory& memory);

// The version of the interface that the handler was built for, as XLA asks when it is
// registered; 0 where it does not say.
int api_minor_version(XLA_FFI_Handler* handler);

}  // namespace xla_ops::fuzz

#endif  // XLA_OPS_TESTS_FFI_HOST_H_
