#include "base/thread_pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <string>

namespace assay {
namespace {

void FutexWait(std::atomic<uint32_t>& word, uint32_t expected) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, expected, nullptr,
          nullptr, 0);
}
void FutexWakeAll(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, 1 << 30, nullptr,
          nullptr, 0);
}

void Pause() { __builtin_ia32_pause(); }

// Cores granted by the cgroup's quota, or a large number without one.
double CgroupCores() {
  std::ifstream v2("/sys/fs/cgroup/cpu.max");
  std::string quota;
  double period = 0;
  if (v2 >> quota >> period && quota != "max" && period > 0) return std::stod(quota) / period;
  std::ifstream v1_quota("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"),
      v1_period("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  double microseconds = 0;
  if (v1_quota >> microseconds && v1_period >> period && microseconds > 0 && period > 0)
    return microseconds / period;
  return 1e9;
}

void PinToCore(int index) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  for (int core = 0, seen = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &allowed) || seen++ != index) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    sched_setaffinity(0, sizeof(one), &one);
    return;
  }
}

}  // namespace

int ThreadPool::AvailableCores() {
  cpu_set_t allowed;
  const int mask = sched_getaffinity(0, sizeof(allowed), &allowed) == 0 ? CPU_COUNT(&allowed) : 1;
  return std::max(1, static_cast<int>(std::min<double>(mask, std::ceil(CgroupCores()))));
}

ThreadPool::ThreadPool(Options options) : options_(options) {
  const int threads = options_.num_threads > 0 ? options_.num_threads : AvailableCores();
  threads_.reserve(static_cast<size_t>(threads) - 1);
  for (int worker = 1; worker < threads; ++worker)
    threads_.emplace_back([this, worker] { Loop(worker); });
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  FutexWakeAll(epoch_);
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::Run(absl::FunctionRef<void(int worker)> fn) {
  if (threads_.empty()) {
    fn(0);
    return;
  }
  MutexLock lock(run_mu_);
  Open(fn);
  fn(0);
  WaitFor(threads_.size());
  gate_.fetch_or(kClosed);
}

void ThreadPool::Share(absl::FunctionRef<void(int worker)> fn) {
  if (threads_.empty()) {
    fn(0);
    return;
  }
  MutexLock lock(run_mu_);
  Open(fn);
  fn(0);
  WaitFor(gate_.fetch_or(kClosed) & (kClosed - 1));
}

// Nobody is inside a run: `fn` may be published.
void ThreadPool::Open(absl::FunctionRef<void(int worker)>& fn) {
  arg_ = &fn;
  call_ = [](void* f, int worker) { (*static_cast<absl::FunctionRef<void(int)>*>(f))(worker); };
  finished_.store(0, std::memory_order_relaxed);
  const uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  gate_.store(uint64_t{epoch} << 32, std::memory_order_release);
  epoch_.store(epoch);  // sequentially consistent with sleepers_: either we see the sleeper or it
                        // sees the epoch
  if (sleepers_.load() != 0) FutexWakeAll(epoch_);
}

void ThreadPool::WaitFor(uint64_t workers) {
  for (int spins = 0; finished_.load(std::memory_order_acquire) != workers; ++spins) {
    if (spins < 4096) {
      Pause();
    } else {
      sched_yield();  // a worker lost its core: let it have this one
    }
  }
}

bool ThreadPool::Join(uint32_t epoch) {
  uint64_t gate = gate_.load(std::memory_order_relaxed);
  while (gate >> 32 == epoch && (gate & kClosed) == 0) {
    if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acquire)) return true;
  }
  return false;
}

void ThreadPool::ParallelFor(int64_t n, int64_t grain,
                             absl::FunctionRef<void(int64_t begin, int64_t end)> fn) {
  if (n <= 0) return;
  if (threads_.empty() || n <= grain) {
    fn(0, n);
    return;
  }
  // Four chunks per worker: the tail that a slow worker leaves is a quarter of its share.
  const int64_t chunk = std::max(grain, (n + 4 * num_threads() - 1) / (4 * num_threads()));
  std::atomic<int64_t> next{0};
  Share([&](int) {
    for (int64_t begin = next.fetch_add(chunk); begin < n; begin = next.fetch_add(chunk)) {
      fn(begin, std::min(n, begin + chunk));
    }
  });
}

void ThreadPool::Loop(int worker) {
  if (options_.pin) PinToCore(worker);
  uint32_t seen = 0;
  while (true) {
    const auto deadline =
        std::chrono::steady_clock::now() + std::chrono::microseconds(options_.spin_us);
    while (epoch_.load(std::memory_order_acquire) == seen &&
           std::chrono::steady_clock::now() < deadline) {
      for (int i = 0; i < 16; ++i) Pause();
    }
    while (epoch_.load() == seen) {
      sleepers_.fetch_add(1);
      FutexWait(epoch_, seen);  // returns at once if the epoch has already moved
      sleepers_.fetch_sub(1);
    }
    seen = epoch_.load(std::memory_order_acquire);
    if (stop_.load()) return;
    if (!Join(seen)) continue;  // over already
    call_(arg_, worker);
    finished_.fetch_add(1, std::memory_order_release);
  }
}

}  // namespace assay
