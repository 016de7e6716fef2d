// What came of the requests: counts, histograms, and windows of time.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "loadtest/calls.h"
#include "loadtest/histogram.h"

namespace assay::load {

// Of requests of one kind in one phase; sums of these are figures of a kind, of a phase, of the
// run.
struct Tally {
  int64_t requests = 0, good = 0, tokens = 0;
  std::map<std::string, int64_t> outcomes;         // "OK", "CANCELLED (ours)", or the code's name
  Histogram first_token, inter_token, end_to_end;  // end_to_end: of those that ended OK
  Histogram failed;  // intended moment to status of all others but ours

  void Merge(const Tally& other);
};

// Half a second of the run. Where one request counts in several columns, they may be in different
// windows.
struct Window {
  int64_t offered = 0;         // intended in it
  int64_t good = 0;            // of those, how many came to a good end
  int64_t ok = 0, tokens = 0;  // ended in it
  int64_t failed = 0;
};
inline constexpr int64_t kWindowUs = 500000;

struct Progress {
  int64_t started = 0, ended = 0, ok = 0;
  std::map<std::string, int64_t> errors;
};

// Thread-safe.
class Recorder {
 public:
  explicit Recorder(const Scenario& scenario);
  void SetStart(Instant start);  // of the run, before the first request
  void OnStarted(const Dispatch& dispatch, int64_t late_us, bool open_loop);
  void OnNotSent(const Dispatch& dispatch);  // too many were open
  void OnEnded(const CallResult& result);

  int64_t open() const;
  // False when some were still open at `until`.
  bool WaitUntilOpenIsBelow(int64_t limit, Instant until);
  Progress progress() const;
  Tally cell(size_t phase, size_t kind) const;
  Histogram lateness() const;
  int64_t offered(size_t phase) const;  // requests that were due, sent or not
  int64_t not_sent() const;
  std::vector<Window> windows() const;
  std::string first_error() const;

 private:
  bool IsGood(const CallResult& result, const RequestKind& kind) const;
  Window& WindowAt(Instant when) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const Scenario& scenario_;
  mutable Mutex mu_;
  CondVar ended_;
  Instant start_ ABSL_GUARDED_BY(mu_);
  std::vector<Tally> cells_ ABSL_GUARDED_BY(mu_);      // [phase * kinds + kind]
  std::vector<int64_t> offered_ ABSL_GUARDED_BY(mu_);  // [phase]
  std::vector<Window> windows_ ABSL_GUARDED_BY(mu_);
  Histogram lateness_ ABSL_GUARDED_BY(mu_);
  Progress progress_ ABSL_GUARDED_BY(mu_);
  int64_t open_ ABSL_GUARDED_BY(mu_) = 0, not_sent_ ABSL_GUARDED_BY(mu_) = 0;
  std::string first_error_ ABSL_GUARDED_BY(mu_);
};

}  // namespace assay::load
