// Scratch memory for one forward pass: a bump allocator over one buffer, so the token path never
// asks the heap. Thread rule: one thread allocates; the memory may be used by the pool's workers.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>

#include "base/device.h"

namespace assay {

class Arena {
 public:
  static absl::StatusOr<Arena> Create(Device& device, size_t bytes) {
    ASSIGN_OR_RETURN(Buffer buffer, device.Allocate(bytes));
    return Arena(std::move(buffer));
  }
  Arena() = default;

  // 64-byte aligned, uninitialised; nullptr when the arena is exhausted: its size is computed when
  // a model is loaded, so that is a bug of ours, which the taker reports as Internal.
  template <typename T>
  T* TryAllocate(size_t count) {
    if (count > free_bytes() / sizeof(T)) return nullptr;
    const size_t begin = Aligned(used_);
    used_ = begin + count * sizeof(T);
    return reinterpret_cast<T*>(buffer_.data() + begin);
  }
  // The same where nobody can report it: ends the process, with the numbers. Whoever calls a kernel
  // asks for free_bytes() first, so this is reached only when a kernel takes more than it
  // announced.
  template <typename T>
  T* Allocate(size_t count) {
    T* const memory = TryAllocate<T>(count);
    if (memory == nullptr) DieExhausted(count, sizeof(T));
    return memory;
  }
  size_t capacity() const { return buffer_.bytes(); }
  size_t free_bytes() const { return buffer_.bytes() - std::min(buffer_.bytes(), Aligned(used_)); }

  // Gives back, when it dies, everything allocated since it was made.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), mark_(arena.used_) {}
    ~Scope() { arena_.used_ = mark_; }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    const size_t mark_;
  };

 private:
  explicit Arena(Buffer buffer) : buffer_(std::move(buffer)) {}
  static size_t Aligned(size_t bytes) { return (bytes + 63) / 64 * 64; }
  [[noreturn, gnu::cold]] void DieExhausted(size_t count, size_t size) const {
    std::fprintf(stderr,
                 "CHECK failed: scratch arena exhausted: elements=%zu of bytes=%zu free=%zu "
                 "capacity=%zu\n",
                 count, size, free_bytes(), capacity());
    std::abort();
  }

  Buffer buffer_;
  size_t used_ = 0;
};

// What a computation needs besides its operands. Passed down from the engine's loop thread.
class ThreadPool;
struct ComputeContext {
  ThreadPool& pool;
  Arena& scratch;
  // [rows of x] 1 where the row is a decode step, or nullptr: all rows are prefill. Read by linear
  // layers whose activation mode depends on the phase.
  const uint8_t* decode_rows = nullptr;
};

}  // namespace assay
