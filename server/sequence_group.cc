#include "server/sequence_group.h"

#include <utility>

namespace assay {

void SequenceGroup::SubmitAll(size_t rows, const Submit& submit, CancelOne cancel,
                              AllEnded all_ended) {
  {
    MutexLock lock(mu_);
    pending_ = 1;  // of this function: rows may end while later ones are submitted
    cancel_ = cancel;
    all_ended_ = std::move(all_ended);
  }
  absl::Status failure;
  for (size_t row = 0; row < rows && failure.ok(); ++row) {
    {
      MutexLock lock(mu_);
      if (cancelled_) failure = absl::CancelledError("the client cancelled the request");
      if (!failure.ok()) break;
      ++pending_;
    }
    const absl::StatusOr<SequenceId> id = submit(row);
    if (!id.ok()) {
      failure = id.status();
      Ended(failure);
      break;
    }
    bool cancel_now = false;
    {
      MutexLock lock(mu_);
      ids_.push_back(*id);
      cancel_now = cancelled_;
    }
    if (cancel_now) cancel(*id);
  }
  if (!failure.ok()) Cancel();
  Ended(failure);
}

void SequenceGroup::Ended(const absl::Status& status) {
  AllEnded all_ended;
  absl::Status error;
  {
    MutexLock lock(mu_);
    if (error_.ok()) error_ = status;
    if (--pending_ > 0) return;
    all_ended = std::exchange(all_ended_, nullptr);
    error = error_;
  }
  all_ended(error);  // may destroy *this
}

void SequenceGroup::Cancel() {
  std::vector<SequenceId> ids;
  CancelOne cancel;
  {
    MutexLock lock(mu_);
    cancelled_ = true;
    if (pending_ == 0) return;  // not begun, or over
    ids = ids_;
    cancel = cancel_;
  }
  for (const SequenceId id : ids) cancel(id);
}

}  // namespace assay
