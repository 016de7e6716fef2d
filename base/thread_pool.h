// The compute threads: a persistent pool with a cheap fork and join.
//
// Run() hands one function to all workers and returns when each is done; the caller is worker 0.
// Between runs the other workers spin for a bounded time (default 50 us) and then sleep on a futex,
// so an idle server costs nothing and a server that shares its cores with RPC threads does not burn
// them. Run() allocates nothing. Thread rule: one Run at a time per pool; a second caller waits.
// Run must not be called from inside a worker.
#pragma once
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"
#include "base/mutex.h"

namespace assay {

class ThreadPool {
 public:
  struct Options {
    int num_threads = 0;  // 0 = one per core this process may use
    int spin_us = 50;     // how long a worker polls before it sleeps
    bool pin = false;     // bind worker i to the i-th allowed core
  };
  explicit ThreadPool(Options options);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls fn(worker) for worker in [0, num_threads).
  void Run(absl::FunctionRef<void(int worker)> fn) ABSL_LOCKS_EXCLUDED(run_mu_);

  // Splits [0, n) into contiguous ranges and calls fn(begin, end); ranges are taken from a shared
  // counter in chunks of at least `grain`, so a worker that lost its core does not stall the
  // others. Runs inline when one chunk suffices.
  void ParallelFor(int64_t n, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> fn);

  // Number of cores this process may run on (affinity mask and cgroup quota).
  static int AvailableCores();

 private:
  void Loop(int worker);

  const Options options_;
  Mutex run_mu_;                       // serialises Run
  std::atomic<uint32_t> epoch_{0};     // bumped once per Run: workers wait for a change
  std::atomic<uint32_t> sleepers_{0};  // workers inside futex wait; Run wakes only if any
  std::atomic<int> pending_{0};        // workers that have not finished this Run
  std::atomic<bool> stop_{false};
  void (*call_)(void* fn, int worker) = nullptr;  // published by epoch_
  void* arg_ = nullptr;                           // published by epoch_
  std::vector<std::thread> threads_;
};

}  // namespace assay
