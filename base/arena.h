// Scratch memory for one forward pass: a bump allocator over one buffer, so the token path never
// asks the heap. Thread rule: one thread allocates; the memory may be used by the pool's workers.
#pragma once
#include <cstddef>

#include "base/device.h"

namespace assay {

class Arena {
 public:
  static absl::StatusOr<Arena> Create(Device& device, size_t bytes) {
    ASSIGN_OR_RETURN(Buffer buffer, device.Allocate(bytes));
    return Arena(std::move(buffer));
  }
  Arena() = default;

  // 64-byte aligned, uninitialised; nullptr when the arena is exhausted (a sizing bug of the
  // caller, reported as Internal).
  template <typename T>
  T* Allocate(size_t count) {
    const size_t begin = (used_ + 63) / 64 * 64, end = begin + count * sizeof(T);
    if (end > buffer_.bytes()) return nullptr;
    used_ = end;
    return reinterpret_cast<T*>(buffer_.data() + begin);
  }
  size_t capacity() const { return buffer_.bytes(); }

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
  Buffer buffer_;
  size_t used_ = 0;
};

// What a computation needs besides its operands. Passed down from the engine's loop thread.
class ThreadPool;
struct ComputeContext {
  ThreadPool& pool;
  Arena& scratch;
};

}  // namespace assay
