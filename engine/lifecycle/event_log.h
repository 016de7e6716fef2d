// What happened to the models, for people: the latest events, in memory and in the log.
// Thread-safe.
#pragma once
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/log.h"
#include "base/mutex.h"

namespace assay {

struct Event {
  int64_t id = 0;  // counts from 1
  absl::Time at;
  LogLevel level = LogLevel::kInfo;
  std::string model;
  int64_t version = 0;
  std::string kind;    // "state", "drift", "action"
  std::string reason;  // a sentence
};

class EventLog {
 public:
  static constexpr size_t kMost = 512;
  explicit EventLog(const Clock& clock) : clock_(clock) {}
  // Fills id and time, and logs it.
  void Add(Event event) ABSL_LOCKS_EXCLUDED(mu_);
  // Events with a greater id, oldest first; of one model unless `model` is empty.
  std::vector<Event> Since(int64_t id, std::string_view model = {}) const ABSL_LOCKS_EXCLUDED(mu_);

 private:
  const Clock& clock_;
  mutable Mutex mu_;
  int64_t last_ ABSL_GUARDED_BY(mu_) = 0;
  std::deque<Event> events_ ABSL_GUARDED_BY(mu_);
};

}  // namespace assay
