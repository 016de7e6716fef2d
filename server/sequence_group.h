// Several submissions to one engine that end together: the rows of one request.
//
// Thread rule: SubmitAll and Cancel from gRPC's threads; Ended from the sinks, on the engine's loop
// thread (it never calls into the engine). `all_ended` is called exactly once, as the last thing
// that the group does, on whichever thread comes last; it may destroy the group.
#pragma once
#include <functional>
#include <vector>

#include "base/mutex.h"
#include "engine/runtime/sequence.h"

namespace assay {

class SequenceGroup {
 public:
  using Submit = std::function<absl::StatusOr<SequenceId>(size_t row)>;
  using CancelOne = std::function<void(SequenceId)>;
  using AllEnded = std::function<void(const absl::Status& first_error)>;

  // Submits rows [0, rows). After a failure the rest is not submitted and what was is cancelled.
  void SubmitAll(size_t rows, const Submit& submit, CancelOne cancel, AllEnded all_ended)
      ABSL_LOCKS_EXCLUDED(mu_);
  // One submitted row has ended.
  void Ended(const absl::Status& status) ABSL_LOCKS_EXCLUDED(mu_);
  void Cancel() ABSL_LOCKS_EXCLUDED(mu_);  // idempotent; the rows still end

 private:
  mutable Mutex mu_;
  CancelOne cancel_ ABSL_GUARDED_BY(mu_);
  AllEnded all_ended_ ABSL_GUARDED_BY(mu_);
  std::vector<SequenceId> ids_ ABSL_GUARDED_BY(mu_);
  absl::Status error_ ABSL_GUARDED_BY(mu_);
  size_t pending_ ABSL_GUARDED_BY(mu_) = 0;
  bool cancelled_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace assay
