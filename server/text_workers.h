// Threads for work on long texts. Tokenizing takes about a second per 4 MiB, and gRPC has as many
// callback threads as there are cores: a few long texts on those would stop every other call,
// health checks included.
#pragma once
#include <cstddef>
#include <deque>
#include <functional>
#include <thread>
#include <vector>

#include "base/mutex.h"

namespace assay {

// Thread-safe. Work begins in the order of Run, and all of it is run before the destructor returns.
class TextWorkers {
 public:
  // At most this much is worked on by the caller itself (about a millisecond).
  static constexpr size_t kShortBytes = size_t{64} << 10;

  explicit TextWorkers(int num_threads);
  ~TextWorkers();
  TextWorkers(const TextWorkers&) = delete;
  TextWorkers& operator=(const TextWorkers&) = delete;

  // Calls `work` once: before returning when text_bytes <= kShortBytes, else on one of the threads.
  // What `work` refers to must live until it has been called.
  void Run(size_t text_bytes, std::function<void()> work) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  void Loop() ABSL_LOCKS_EXCLUDED(mu_);

  Mutex mu_;
  CondVar changed_;
  std::deque<std::function<void()>> waiting_ ABSL_GUARDED_BY(mu_);
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace assay
