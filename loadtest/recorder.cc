#include "loadtest/recorder.h"

#include <algorithm>

namespace assay::load {

void Tally::Merge(const Tally& other) {
  requests += other.requests;
  good += other.good;
  tokens += other.tokens;
  for (const auto& [name, count] : other.outcomes) outcomes[name] += count;
  first_token.Merge(other.first_token);
  inter_token.Merge(other.inter_token);
  end_to_end.Merge(other.end_to_end);
  failed.Merge(other.failed);
}

Recorder::Recorder(const Scenario& scenario) : scenario_(scenario) {
  MutexLock lock(mu_);
  cells_.resize(scenario.phases.size() * scenario.kinds.size());
  offered_.resize(scenario.phases.size());
}

void Recorder::SetStart(Instant start) {
  MutexLock lock(mu_);
  start_ = start;
}

Window& Recorder::WindowAt(Instant when) {
  const int64_t us = std::chrono::duration_cast<std::chrono::microseconds>(when - start_).count();
  const auto index = static_cast<size_t>(std::max<int64_t>(us, 0) / kWindowUs);
  if (index >= windows_.size()) windows_.resize(index + 1);
  return windows_[index];
}

void Recorder::OnStarted(const Dispatch& dispatch, int64_t late_us, bool open_loop) {
  MutexLock lock(mu_);
  ++progress_.started;
  ++open_;
  ++WindowAt(dispatch.intended).offered;
  ++offered_[dispatch.phase];
  if (open_loop) lateness_.Record(late_us);
}

void Recorder::OnNotSent(const Dispatch& dispatch) {
  MutexLock lock(mu_);
  ++not_sent_;
  ++WindowAt(dispatch.intended).offered;
  ++offered_[dispatch.phase];
}

bool Recorder::IsGood(const CallResult& result, const RequestKind& kind) const {
  if (!result.status.ok() && !result.cancelled_by_us) return false;
  const auto within = [](int64_t us, const std::optional<absl::Duration>& limit) {
    return !limit || absl::Microseconds(us) <= *limit;
  };
  const Slo& slo = scenario_.slo;
  const bool streams = kind.call == Call::kGenerate;
  // A client that reads slowly would only measure itself.
  const bool slow = kind.reader_delay > absl::ZeroDuration();
  if (streams && !result.cancelled_by_us && result.first_us < 0) return false;  // an empty answer
  if (streams && !within(result.first_us, slo.first_token)) return false;
  if (slow) return true;
  if (streams && !result.gaps_us.empty() &&
      !within((result.last_us - result.first_us) / static_cast<int64_t>(result.gaps_us.size()),
              slo.inter_token)) {
    return false;
  }
  return result.cancelled_by_us || within(result.end_us, slo.end_to_end);
}

void Recorder::OnEnded(const CallResult& result) {
  const auto kind_index = static_cast<size_t>(result.dispatch.planned.kind);
  const RequestKind& kind = scenario_.kinds[kind_index];
  const bool ok = result.status.ok(), streams = kind.call == Call::kGenerate;
  const bool slow = kind.reader_delay > absl::ZeroDuration();
  const bool good = IsGood(result, kind);
  const std::string outcome =
      result.cancelled_by_us ? "CANCELLED (ours)" : CodeName(result.status.error_code());
  MutexLock lock(mu_);
  Tally& tally = cells_[result.dispatch.phase * scenario_.kinds.size() + kind_index];
  ++tally.requests;
  ++tally.outcomes[outcome];
  tally.good += good;
  tally.tokens += result.tokens;
  if (streams && result.first_us >= 0) tally.first_token.Record(result.first_us);
  if (streams && !slow) {
    for (const int64_t gap : result.gaps_us) tally.inter_token.Record(gap);
  }
  if (ok && !slow) tally.end_to_end.Record(result.end_us);
  if (!ok && !result.cancelled_by_us) {
    tally.failed.Record(result.end_us);
    ++progress_.errors[outcome];
    if (first_error_.empty()) first_error_ = outcome + ": " + result.status.error_message();
  }
  Window& end = WindowAt(result.dispatch.intended + std::chrono::microseconds(result.end_us));
  ++(ok || result.cancelled_by_us ? end.ok : end.failed);
  end.tokens += result.tokens;
  WindowAt(result.dispatch.intended).good += good;
  ++progress_.ended;
  progress_.ok += ok || result.cancelled_by_us;
  --open_;
  ended_.NotifyAll();
}

int64_t Recorder::open() const {
  MutexLock lock(mu_);
  return open_;
}

bool Recorder::WaitUntilOpenIsBelow(int64_t limit, Instant until) {
  MutexLock lock(mu_);
  while (open_ >= limit) {
    if (!ended_.WaitUntil(mu_, until)) return open_ < limit;
  }
  return true;
}

Progress Recorder::progress() const {
  MutexLock lock(mu_);
  return progress_;
}

Tally Recorder::cell(size_t phase, size_t kind) const {
  MutexLock lock(mu_);
  return cells_[phase * scenario_.kinds.size() + kind];
}

Histogram Recorder::lateness() const {
  MutexLock lock(mu_);
  return lateness_;
}

int64_t Recorder::offered(size_t phase) const {
  MutexLock lock(mu_);
  return offered_[phase];
}

int64_t Recorder::not_sent() const {
  MutexLock lock(mu_);
  return not_sent_;
}

std::vector<Window> Recorder::windows() const {
  MutexLock lock(mu_);
  return windows_;
}

std::string Recorder::first_error() const {
  MutexLock lock(mu_);
  return first_error_;
}

}  // namespace assay::load
