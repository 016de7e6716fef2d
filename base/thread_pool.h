// The compute threads: a persistent pool with a cheap fork and join.
//
// Share() offers one function to all workers and returns when those that came are done; the caller
// is worker 0. Who comes after the caller is done is not waited for: where cores are shared with
// RPC threads, a worker that has lost its core holds nobody up. Run() waits for all of them.
// Between runs the other workers spin for a bounded time (default 50 us) and then sleep on a futex,
// so an idle server costs nothing and a server that shares its cores with RPC threads does not burn
// them. Nothing is allocated. Thread rule: one Run or Share at a time per pool; a second caller
// waits. Neither may be called from inside a worker.
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

  // Calls fn(0), and fn(worker) for those workers that come meanwhile, each once. Whoever is
  // called takes from the work (an atomic counter) until nothing is left, so that all is done
  // whoever came.
  void Share(absl::FunctionRef<void(int worker)> fn) ABSL_LOCKS_EXCLUDED(run_mu_);

  // Splits [0, n) into contiguous ranges and calls fn(begin, end); ranges are taken from a shared
  // counter in chunks of at least `grain`, as with Share. Runs inline when one chunk suffices.
  void ParallelFor(int64_t n, int64_t grain,
                   absl::FunctionRef<void(int64_t begin, int64_t end)> fn);

  // Number of cores this process may run on (affinity mask and cgroup quota).
  static int AvailableCores();

 private:
  static constexpr uint64_t kClosed = uint64_t{1} << 31;

  void Open(absl::FunctionRef<void(int worker)>& fn) ABSL_EXCLUSIVE_LOCKS_REQUIRED(run_mu_);
  void WaitFor(uint64_t workers);
  bool Join(uint32_t epoch);
  void Loop(int worker);

  const Options options_;
  Mutex run_mu_;                       // serialises Run and Share
  std::atomic<uint32_t> epoch_{0};     // bumped once per run: workers wait for a change
  std::atomic<uint32_t> sleepers_{0};  // workers inside futex wait; a run wakes only if any
  // High half: the epoch whose run may be joined; low half: how many have, or kClosed.
  std::atomic<uint64_t> gate_{kClosed};
  std::atomic<uint64_t> finished_{0};  // of those that joined
  std::atomic<bool> stop_{false};
  void (*call_)(void* fn, int worker) = nullptr;  // published by gate_
  void* arg_ = nullptr;                           // published by gate_
  std::vector<std::thread> threads_;
};

}  // namespace assay
