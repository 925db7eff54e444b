#include "ffi_host.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <utility>

#ifdef XLA_OPS_X86
#include <immintrin.h>
#endif

struct XLA_FFI_Error {
  XLA_FFI_Error_Code code;
  std::string message;
};

struct XLA_FFI_ExecutionContext {
  xla_ops::fuzz::Pool* pool;
};

namespace xla_ops::fuzz {
namespace {

// Denormal numbers are zero for the life of this object, as on XLA's threads.
class FlushDenormals {
 public:
#ifdef XLA_OPS_X86
  FlushDenormals() : saved_(_mm_getcsr()) {
    _MM_SET_FLUSH_ZERO_MODE(_MM_FLUSH_ZERO_ON);
    _mm_setcsr(_mm_getcsr() | 0x0040);  // denormals are zero
  }
  ~FlushDenormals() { _mm_setcsr(saved_); }

 private:
  unsigned saved_;
#else
  FlushDenormals() {}
  ~FlushDenormals() {}
#endif
};

XLA_FFI_Error* create_error(XLA_FFI_Error_Create_Args* args) {
  return new XLA_FFI_Error{args->errc, args->message};
}

void get_message(XLA_FFI_Error_GetMessage_Args* args) {
  args->message = args->error->message.c_str();
}

void destroy_error(XLA_FFI_Error_Destroy_Args* args) { delete args->error; }

XLA_FFI_Error* schedule(XLA_FFI_ThreadPool_Schedule_Args* args) {
  if (!args->ctx->pool) return new XLA_FFI_Error{XLA_FFI_Error_Code_UNAVAILABLE, "no pool"};
  args->ctx->pool->schedule({args->task, args->data});
  return nullptr;
}

XLA_FFI_Error* count_threads(XLA_FFI_ThreadPool_NumThreads_Args* args) {
  if (!args->ctx->pool) return new XLA_FFI_Error{XLA_FFI_Error_Code_UNAVAILABLE, "no pool"};
  *args->num_threads = args->ctx->pool->num_threads();
  return nullptr;
}

// Entries that no handler of ours may use stay empty.
const XLA_FFI_Api kApi = [] {
  XLA_FFI_Api api{};
  api.struct_size = XLA_FFI_Api_STRUCT_SIZE;
  api.api_version = {XLA_FFI_Api_Version_STRUCT_SIZE, nullptr, XLA_FFI_API_MAJOR,
                     XLA_FFI_API_MINOR};
  api.XLA_FFI_Error_Create = create_error;
  api.XLA_FFI_Error_GetMessage = get_message;
  api.XLA_FFI_Error_Destroy = destroy_error;
  api.XLA_FFI_ThreadPool_Schedule = schedule;
  api.XLA_FFI_ThreadPool_NumThreads = count_threads;
  return api;
}();

struct MemoryState {
  Memory memory;
  int64_t requests = 0;
  bool refused = false;
};

// Of the handler that this thread is calling.
thread_local MemoryState* memory_state = nullptr;

}  // namespace
}  // namespace xla_ops::fuzz

extern "C" void* __real_aligned_alloc(size_t alignment, size_t bytes);

// The linker sends the handlers' calls of aligned_alloc here.
extern "C" void* __wrap_aligned_alloc(size_t alignment, size_t bytes) {
  xla_ops::fuzz::MemoryState* state = xla_ops::fuzz::memory_state;
  if (state == nullptr) return __real_aligned_alloc(alignment, bytes);
  if (state->requests++ == state->memory.failing ||
      bytes > static_cast<size_t>(state->memory.limit)) {
    state->refused = true;
    return nullptr;
  }
  void* block = __real_aligned_alloc(alignment, bytes);
  if (block) std::memset(block, state->memory.fill, bytes);
  return block;
}

namespace xla_ops::fuzz {

ThreadPool::ThreadPool(int threads) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { run(); });
}

ThreadPool::~ThreadPool() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::schedule(Task task) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(task);
  }
  changed_.notify_one();
}

void ThreadPool::run() {
  const FlushDenormals flush;
  for (;;) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return closed_ || !queue_.empty(); });
    if (queue_.empty()) return;
    const Task task = queue_.front();
    queue_.pop_front();
    lock.unlock();
    task.function(task.data);
  }
}

void LatePool::run_all() {
  for (const Task& task : std::exchange(tasks_, {})) task.function(task.data);
}

Buffer::Buffer(const Tensor& tensor)
    : shape_(tensor.shape), bytes_(count_elements(shape_) * element_bytes(tensor.type)) {
  const int64_t before = tensor.misplaced * std::min<int64_t>(element_bytes(tensor.type), 8);
  block_ = bytes_ == 0 && tensor.null_if_empty ? nullptr
                                               : static_cast<char*>(std::malloc(before + bytes_));
  data_ = block_ ? block_ + before : nullptr;
  ffi_ = {XLA_FFI_Buffer_STRUCT_SIZE,          nullptr,      tensor.type, data_,
          static_cast<int64_t>(shape_.size()), shape_.data()};
}

Buffer::~Buffer() { std::free(block_); }

Outcome call_handler(XLA_FFI_Handler* handler, const std::vector<Buffer*>& operands,
                     const std::vector<Buffer*>& results, std::vector<Attribute> attributes,
                     Pool* pool, const Memory& memory) {
  std::vector<XLA_FFI_ArgType> operand_types(operands.size(), XLA_FFI_ArgType_BUFFER);
  std::vector<XLA_FFI_RetType> result_types(results.size(), XLA_FFI_RetType_BUFFER);
  std::vector<void*> operand_pointers, result_pointers;
  for (Buffer* buffer : operands) operand_pointers.push_back(buffer->ffi());
  for (Buffer* buffer : results) result_pointers.push_back(buffer->ffi());

  // XLA sorts attributes by name.
  std::sort(attributes.begin(), attributes.end(),
            [](const Attribute& a, const Attribute& b) { return a.name < b.name; });
  std::vector<XLA_FFI_AttrType> types;
  std::vector<XLA_FFI_ByteSpan> names, texts;
  std::vector<XLA_FFI_Scalar> scalars;
  for (Attribute& attribute : attributes) {
    types.push_back(attribute.is_text ? XLA_FFI_AttrType_STRING : XLA_FFI_AttrType_SCALAR);
    names.push_back({attribute.name.data(), attribute.name.size()});
    texts.push_back({attribute.text.data(), attribute.text.size()});
    scalars.push_back({attribute.type, &attribute.integer});
  }
  std::vector<XLA_FFI_ByteSpan*> name_pointers;
  std::vector<void*> values;
  for (size_t i = 0; i < attributes.size(); ++i) {
    name_pointers.push_back(&names[i]);
    values.push_back(attributes[i].is_text ? static_cast<void*>(&texts[i]) : &scalars[i]);
  }

  XLA_FFI_ExecutionContext context{pool};
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.api = &kApi;
  frame.ctx = &context;
  frame.stage = XLA_FFI_ExecutionStage_EXECUTE;
  frame.args = {XLA_FFI_Args_STRUCT_SIZE, nullptr, static_cast<int64_t>(operands.size()),
                operand_types.data(), operand_pointers.data()};
  frame.rets = {XLA_FFI_Rets_STRUCT_SIZE, nullptr, static_cast<int64_t>(results.size()),
                result_types.data(), result_pointers.data()};
  frame.attrs = {XLA_FFI_Attrs_STRUCT_SIZE,
                 nullptr,
                 static_cast<int64_t>(attributes.size()),
                 types.data(),
                 name_pointers.data(),
                 values.data()};

  MemoryState state{memory};
  memory_state = &state;
  XLA_FFI_Error* error;
  {
    const FlushDenormals flush;
    error = handler(&frame);
  }
  memory_state = nullptr;
  Outcome outcome;
  outcome.refused_memory = state.refused;
  if (error) {
    outcome.code = error->code;
    outcome.message = error->message;
    delete error;
  }
  return outcome;
}

int api_minor_version(XLA_FFI_Handler* handler) {
  XLA_FFI_Metadata metadata{};
  metadata.struct_size = XLA_FFI_Metadata_STRUCT_SIZE;
  XLA_FFI_Metadata_Extension extension{};
  extension.extension_base = {XLA_FFI_Metadata_Extension_STRUCT_SIZE, XLA_FFI_Extension_Metadata,
                              nullptr};
  extension.metadata = &metadata;
  XLA_FFI_CallFrame frame{};
  frame.struct_size = XLA_FFI_CallFrame_STRUCT_SIZE;
  frame.extension_start = &extension.extension_base;
  frame.api = &kApi;
  XLA_FFI_Error* error = handler(&frame);
  if (error == nullptr) return metadata.api_version.minor_version;
  delete error;
  return 0;
}

}  // namespace xla_ops::fuzz
