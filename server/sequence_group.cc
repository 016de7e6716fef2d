#include "server/sequence_group.h"

#include <utility>

namespace assay {

void SequenceGroup::SubmitAll(Rows rows, Submit submit, CancelOne cancel, AllEnded all_ended) {
  {
    MutexLock lock(mu_);
    rows_ = rows;
    submit_ = std::move(submit);
    cancel_ = std::move(cancel);
    all_ended_ = std::move(all_ended);
    pending_ = 1;  // of this function: rows may end while later ones are submitted
    feeding_ = true;
  }
  Feed();
  Release();
}

// With feeding_ set, and one of pending_ in the caller's hands.
void SequenceGroup::Feed() {
  Submit submit;
  size_t row = 0;
  {
    MutexLock lock(mu_);
    submit = submit_;
  }
  for (;;) {
    {
      MutexLock lock(mu_);
      if (!TakeRowLocked()) {
        feeding_ = false;
        return;
      }
      row = next_++;
    }
    const absl::StatusOr<SequenceId> id = submit(row);
    if (!id.ok()) return Refused(row, id.status());
    CancelOne cancel_now;
    {
      MutexLock lock(mu_);
      ids_.push_back(*id);
      if (cancelled_) cancel_now = cancel_;
    }
    if (cancel_now) cancel_now(*id);
  }
}

void SequenceGroup::Refused(size_t row, const absl::Status& status) {
  {
    MutexLock lock(mu_);
    --in_engine_;
    --pending_;
    next_ = row;
    feeding_ = false;
    if (absl::IsResourceExhausted(status) && in_engine_ > 0 && row >= rows_.window) return;
    if (error_.ok()) error_ = status;
  }
  Cancel();
}

// Whether the next row may be submitted; then it counts as in the engine.
bool SequenceGroup::TakeRowLocked() {
  if (next_ == rows_.count || !error_.ok() || in_engine_ >= rows_.window) return false;
  if (cancelled_) {
    error_ = absl::CancelledError("the client cancelled the request");
    return false;
  }
  ++in_engine_;
  ++pending_;
  return true;
}

void SequenceGroup::Ended(const absl::Status& status) {
  bool feed = false;
  {
    MutexLock lock(mu_);
    if (error_.ok()) error_ = status;
    --in_engine_;
    feed = !feeding_ && next_ < rows_.count && error_.ok();
    if (feed) feeding_ = true;
  }
  if (feed) Feed();
  Release();
}

void SequenceGroup::Release() {
  AllEnded all_ended;
  absl::Status error;
  {
    MutexLock lock(mu_);
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
