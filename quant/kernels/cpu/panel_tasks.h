// How the panels of a packed weight are dealt to the compute threads.
#pragma once
#include <algorithm>
#include <atomic>

#include "absl/functional/function_ref.h"
#include "base/cpu_info.h"
#include "base/thread_pool.h"

namespace assay {

// A rectangle of y: rows [row, row_end) x panels [panel, panel_end).
struct PanelTask {
  int64_t row, row_end, panel, panel_end;
};

struct PanelGrid {
  int64_t rows, panels;
  int64_t rows_per_task;  // so many rows of x fit a core's L2
  int64_t min_rows;       // a task is not worth cutting below this
  double work;            // multiply-adds of the whole product
};

// Workers that take part: what scratch per worker is sized for. A pool with more threads than the
// host has cores leaves the rest idle here.
inline int MaxPanelWorkers() { return std::max(4, HostCpu().cores); }
inline int PanelWorkers(const ThreadPool& pool) {
  return std::min(pool.num_threads(), MaxPanelWorkers());
}

// Calls fn(worker, task), worker < PanelWorkers(pool), until every rectangle is done. Work below
// ~30 us stays on the caller: a fork and join costs 1-2 us. Tasks are taken from a counter, a
// multiple of the threads, at most four per thread, so that a worker that lost its core does not
// hold the others up.
inline void ForPanelTasks(ThreadPool& pool, const PanelGrid& grid,
                          absl::FunctionRef<void(int worker, const PanelTask& task)> fn) {
  constexpr double kSerialWork = 64e3;
  const int64_t threads = PanelWorkers(pool);
  if (threads == 1 || grid.work < kSerialWork) {
    for (int64_t row = 0; row < grid.rows; row += grid.rows_per_task) {
      fn(0, {row, std::min(grid.rows, row + grid.rows_per_task), 0, grid.panels});
    }
    return;
  }
  const int64_t per_thread = std::clamp<int64_t>(grid.panels / (6 * threads), 1, 4);
  const int64_t column_tasks = std::min(grid.panels, per_thread * threads);
  // Few panels and many rows: cut the rows finer until each thread has something.
  const int64_t needed = (2 * threads + column_tasks - 1) / column_tasks;
  const int64_t row_tasks =
      std::max((grid.rows + grid.rows_per_task - 1) / grid.rows_per_task,
               std::min(needed, (grid.rows + grid.min_rows - 1) / grid.min_rows));
  std::atomic<int64_t> next{0};
  pool.Share([&](int worker) {
    if (worker >= threads) return;
    for (int64_t t = next.fetch_add(1); t < row_tasks * column_tasks; t = next.fetch_add(1)) {
      const int64_t r = t / column_tasks, c = t % column_tasks;
      fn(worker, {grid.rows * r / row_tasks, grid.rows * (r + 1) / row_tasks,
                  grid.panels * c / column_tasks, grid.panels * (c + 1) / column_tasks});
    }
  });
}

}  // namespace assay
