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
#include "base/status.h"

namespace assay {

// Thread-safe. Work begins in the order of Run, and all of it is run before the destructor returns.
class TextWorkers {
 public:
  // At most this much is worked on by the caller itself (about a millisecond).
  static constexpr size_t kShortBytes = size_t{64} << 10;
  // At most so much waits, unless it is one text: about fifteen seconds of one thread.
  static constexpr size_t kMaxWaitingBytes = size_t{64} << 20;

  explicit TextWorkers(int num_threads);
  ~TextWorkers();
  TextWorkers(const TextWorkers&) = delete;
  TextWorkers& operator=(const TextWorkers&) = delete;

  // Calls `work` once: before returning when text_bytes <= kShortBytes, else on one of the threads.
  // What `work` refers to must live until it has been called. ResourceExhausted: too much waits,
  // and `work` is never called; says when to come back (SetRetryAfter).
  absl::Status Run(size_t text_bytes, std::function<void()> work) ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Text {
    size_t bytes = 0;
    std::function<void()> work;
  };
  void Loop() ABSL_LOCKS_EXCLUDED(mu_);

  Mutex mu_;
  CondVar changed_;
  std::deque<Text> waiting_ ABSL_GUARDED_BY(mu_);
  size_t waiting_bytes_ ABSL_GUARDED_BY(mu_) = 0;
  bool stop_ ABSL_GUARDED_BY(mu_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace assay
