// Several submissions to one engine that end together: the rows of one request. At most a window of
// them is in the engine at once, so that a request of many rows needs no queue of as many places:
// as rows end, later ones follow.
//
// Thread rule: SubmitAll and Cancel from gRPC's threads; Ended from the sinks, on the engine's loop
// thread, where it may submit the next row. `all_ended` is called exactly once, as the last thing
// that the group does, on whichever thread comes last; it may destroy the group.
#pragma once
#include <algorithm>
#include <functional>
#include <vector>

#include "base/mutex.h"
#include "engine/runtime/engine.h"

namespace assay {

// Rows of one request in an engine at once: more than two full batches, at most half of a queue
// that others share.
inline size_t RowsInEngine(const EngineOptions& options) {
  return static_cast<size_t>(std::max(1, options.max_queue / 2));
}

class SequenceGroup {
 public:
  using Submit = std::function<absl::StatusOr<SequenceId>(size_t row)>;
  using CancelOne = std::function<void(SequenceId)>;
  using AllEnded = std::function<void(const absl::Status& first_error)>;

  struct Rows {
    size_t count = 0;
    size_t window = 1;  // in the engine at once, at least 1
  };
  // Submits every row. After a failure the rest is not submitted and what was is cancelled; but
  // when the engine's queue is full (ResourceExhausted) after the first window, the row waits for
  // the next of its own to end. `submit` may so be called twice with a row.
  void SubmitAll(Rows rows, Submit submit, CancelOne cancel, AllEnded all_ended)
      ABSL_LOCKS_EXCLUDED(mu_);
  // One submitted row has ended.
  void Ended(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  void Cancel() ABSL_LOCKS_EXCLUDED(mu_);  // idempotent; the rows still end
  bool cancelled() const ABSL_LOCKS_EXCLUDED(mu_) {
    MutexLock lock(mu_);
    return cancelled_;
  }

 private:
  void Feed() ABSL_LOCKS_EXCLUDED(mu_);
  void Refused(size_t row, const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  bool TakeRowLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void Release() ABSL_LOCKS_EXCLUDED(mu_);

  mutable Mutex mu_;
  Rows rows_ ABSL_GUARDED_BY(mu_);
  Submit submit_ ABSL_GUARDED_BY(mu_);
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;       // the first row that is not submitted
  size_t in_engine_ ABSL_GUARDED_BY(mu_) = 0;  // submitted and not ended
  bool feeding_ ABSL_GUARDED_BY(mu_) = false;  // one thread at a time submits
  CancelOne cancel_ ABSL_GUARDED_BY(mu_);
  AllEnded all_ended_ ABSL_GUARDED_BY(mu_);
  std::vector<SequenceId> ids_ ABSL_GUARDED_BY(mu_);
  absl::Status error_ ABSL_GUARDED_BY(mu_);
  size_t pending_ ABSL_GUARDED_BY(mu_) = 0;  // ends that must come before the group's
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace assay
