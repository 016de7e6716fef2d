#include "base/thread_pool.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <functional>
#include <numeric>
#include <thread>
#include <vector>

namespace assay {
namespace {

TEST(ThreadPoolTest, RunsEveryWorkerOncePerRun) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool({.num_threads = threads, .spin_us = 1});
    std::vector<std::atomic<int>> calls(static_cast<size_t>(threads));
    for (int run = 0; run < 1000; ++run)
      pool.Run([&](int worker) { calls[static_cast<size_t>(worker)]++; });
    for (const auto& count : calls) EXPECT_EQ(count.load(), 1000);
  }
}

TEST(ThreadPoolTest, ParallelForCoversEveryIndexExactlyOnce) {
  ThreadPool pool({.num_threads = 3, .spin_us = 0});
  for (int64_t n : {0, 1, 2, 7, 100, 1001}) {
    for (int64_t grain : {1, 16, 2000}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(n));
      pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) seen[static_cast<size_t>(i)]++;
      });
      for (const auto& count : seen) EXPECT_EQ(count.load(), 1) << "n=" << n << " grain=" << grain;
    }
  }
}

TEST(ThreadPoolTest, WorkOfOneRunIsVisibleToTheNext) {
  ThreadPool pool({.num_threads = 4, .spin_us = 5});
  std::vector<int> cells(4, 0);  // plain ints: a missing happens-before is a data race under TSan
  for (int run = 0; run < 2000; ++run) {
    pool.Run([&](int worker) { cells[static_cast<size_t>((worker + run) % 4)]++; });
  }
  EXPECT_EQ(std::accumulate(cells.begin(), cells.end(), 0), 8000);
}

TEST(ThreadPoolTest, CallersOnSeveralThreadsTakeTurns) {
  ThreadPool pool({.num_threads = 2, .spin_us = 1});
  int64_t total = 0;  // guarded by the pool's own exclusion: one Run at a time, worker 0 only
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&] {
      for (int run = 0; run < 500; ++run)
        pool.Run([&](int worker) {
          if (worker == 0) ++total;
        });
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(total, 2000);
}

TEST(ThreadPoolTest, SharedWorkIsDoneOnceWhoeverComes) {
  for (int threads : {1, 2, 4, 8}) {
    ThreadPool pool({.num_threads = threads, .spin_us = 1});
    std::vector<int> cells(64, 0);  // plain: a missing happens-before is a data race under TSan
    for (int run = 0; run < 2000; ++run) {
      std::vector<std::atomic<int>> calls(static_cast<size_t>(threads));
      std::atomic<size_t> next{0};
      pool.Share([&](int worker) {
        calls[static_cast<size_t>(worker)]++;
        for (size_t i = next.fetch_add(1); i < cells.size(); i = next.fetch_add(1)) cells[i]++;
      });
      EXPECT_EQ(calls[0], 1);
      for (const auto& count : calls) EXPECT_LE(count.load(), 1);
    }
    for (int cell : cells) EXPECT_EQ(cell, 2000);
  }
}

// A worker that stands still, as one does that has lost its core: a signal's handler holds it.
std::atomic<bool> hold{false}, held{false};
void StandStill(int) {
  held = true;
  while (hold) {
  }
}

// What a pool of two does while its worker stands still: true if `work` came to its end by itself.
bool EndsWithoutItsWorker(ThreadPool& pool, const std::function<void()>& work) {
  pthread_t thread{};
  pool.Run([&](int worker) {
    if (worker == 1) thread = pthread_self();
  });
  hold = true;
  held = false;
  pthread_kill(thread, SIGUSR1);
  while (!held) std::this_thread::yield();
  std::atomic<bool> done{false};
  std::atomic<bool> waited{false};
  std::thread helper([&] {
    const auto until = std::chrono::steady_clock::now() + std::chrono::seconds(2);
    while (!done && std::chrono::steady_clock::now() < until) std::this_thread::yield();
    waited = !done;
    hold = false;
  });
  work();
  done = true;
  helper.join();
  return !waited;
}

TEST(ThreadPoolTest, AWorkerThatStandsStillHoldsNobodyUp) {
  std::signal(SIGUSR1, StandStill);
  ThreadPool pool({.num_threads = 2, .spin_us = 1});
  std::vector<std::atomic<int>> seen(1000);
  EXPECT_TRUE(EndsWithoutItsWorker(pool, [&] {
    pool.ParallelFor(1000, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) seen[static_cast<size_t>(i)]++;
    });
  }));
  for (const auto& count : seen) EXPECT_EQ(count.load(), 1);
  // Run is for work that is divided beforehand: it waits.
  std::atomic<int> calls{0};
  EXPECT_FALSE(EndsWithoutItsWorker(pool, [&] { pool.Run([&](int) { ++calls; }); }));
  EXPECT_EQ(calls, 2);
}

}  // namespace
}  // namespace assay
