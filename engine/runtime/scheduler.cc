#include "engine/runtime/scheduler.h"

#include <algorithm>
#include <utility>

#include "engine/runtime/urgency.h"

namespace assay {
namespace {

using Queue = std::vector<std::unique_ptr<Sequence>>;

void InsertById(Queue& queue, std::unique_ptr<Sequence> sequence) {
  const auto place = std::ranges::upper_bound(queue, sequence->id, {},
                                              [](const auto& other) { return other->id; });
  queue.insert(place, std::move(sequence));
}

std::unique_ptr<Sequence> TakeOut(Queue& queue, Queue::iterator at) {
  std::unique_ptr<Sequence> sequence = std::move(*at);
  queue.erase(at);
  return sequence;
}

}  // namespace

Scheduler::Scheduler(const SchedulerOptions& options, KvCache& kv) : options_(options), kv_(kv) {
  const size_t most = std::min(options.max_sequences, options.max_step_tokens);
  running_.reserve(most);
  preempted_.reserve(most);
  plan_.rows.reserve(most);
  plan_.started.reserve(most);
}

void Scheduler::Add(std::unique_ptr<Sequence> sequence) {
  const auto urgency = [](const std::unique_ptr<Sequence>& s) {
    return std::pair(Urgency(s->arrival, s->deadline), s->id);
  };
  const auto place = std::ranges::upper_bound(waiting_, urgency(sequence), {}, urgency);
  waiting_.insert(place, std::move(sequence));
}

StepPlan& Scheduler::Next(absl::Time now) {
  plan_.rows.clear();
  plan_.started.clear();
  plan_.expired.clear();
  plan_.num_preempted = 0;
  rows_left_ = options_.max_step_tokens;
  Expire(running_, now);
  Expire(preempted_, now);
  Expire(waiting_, now);
  PlanDecodes();
  PlanPrefills();
  if (plan_.num_preempted == 0) Admit();
  return plan_;
}

void Scheduler::Advance(const StepPlan::Rows& rows) {
  Sequence& s = *rows.sequence;
  s.num_computed += rows.num_rows;
  kv_.Register(Shareable(s, static_cast<size_t>(s.num_computed)), s.kv);
}

std::span<const int32_t> Scheduler::Shareable(const Sequence& s, size_t count) const {
  if (options_.share_prompts_only) count = std::min(count, static_cast<size_t>(s.num_prompt));
  return std::span<const int32_t>(s.tokens).first(count);
}

std::unique_ptr<Sequence> Scheduler::Remove(SequenceId id) {
  for (Queue* queue : {&running_, &preempted_, &waiting_}) {
    const auto at = std::ranges::find(*queue, id, [](const auto& s) { return s->id; });
    if (at == queue->end()) continue;
    kv_.Release((*at)->kv);
    return TakeOut(*queue, at);
  }
  return nullptr;
}

std::unique_ptr<Sequence> Scheduler::RemoveAny() {
  for (Queue* queue : {&running_, &preempted_, &waiting_}) {
    if (!queue->empty()) return Remove(queue->front()->id);
  }
  return nullptr;
}

void Scheduler::Expire(Queue& queue, absl::Time now) {
  for (auto at = queue.begin(); at != queue.end();) {
    const Sequence& s = **at;
    if (s.deadline > now && (s.started || s.start_by > now)) {
      ++at;
      continue;
    }
    kv_.Release((*at)->kv);
    plan_.expired.push_back(std::move(*at));
    at = queue.erase(at);
  }
}

void Scheduler::PlanDecodes() {
  // By index: preemption removes sequences from the end, which have no rows yet.
  for (size_t i = 0; i < running_.size(); ++i) {
    Sequence& s = *running_[i];
    if (s.num_pending() != 1) continue;
    bool reserved = kv_.Reserve(s.kv, static_cast<int64_t>(s.tokens.size()));
    while (!reserved && i < running_.size()) {
      PreemptYoungest();  // possibly `s` itself
      if (i < running_.size()) {
        reserved = kv_.Reserve(s.kv, static_cast<int64_t>(s.tokens.size()));
      }
    }
    if (reserved) PlanRows(s, 1);
  }
}

void Scheduler::PlanPrefills() {
  for (const std::unique_ptr<Sequence>& s : running_) {
    if (rows_left_ == 0) return;
    if (s->num_pending() > 1) PlanRows(*s, std::min(s->num_pending(), rows_left_));
  }
}

void Scheduler::Admit() {
  while (rows_left_ > 0) {
    Queue& queue = preempted_.empty() ? waiting_ : preempted_;
    if (queue.empty() || !Start(queue)) return;
  }
}

// Moves the first of `queue` to the running ones, with its first rows. False: no room.
bool Scheduler::Start(Queue& queue) {
  if (num_running() == std::min(options_.max_sequences, options_.max_step_tokens)) return false;
  Sequence& s = *queue.front();
  const int cached = kv_.Attach(Shareable(s, s.tokens.size()), s.kv);
  // One block stays for each that is running: a newcomer should not be preempted at once.
  if (!kv_.Reserve(s.kv, static_cast<int64_t>(s.tokens.size())) ||
      kv_.available_blocks() < num_running()) {
    kv_.Release(s.kv);
    return false;
  }
  s.num_computed = cached;
  if (!s.started) {
    s.started = true;
    s.usage.cached_tokens = s.num_first_seen = cached;
    plan_.started.push_back(&s);
  }
  InsertById(running_, TakeOut(queue, queue.begin()));
  PlanRows(s, std::min(s.num_pending(), rows_left_));
  return true;
}

void Scheduler::PreemptYoungest() {
  std::unique_ptr<Sequence> s = TakeOut(running_, std::prev(running_.end()));
  kv_.Release(s->kv);
  s->num_computed = 0;
  ++plan_.num_preempted;
  InsertById(preempted_, std::move(s));
}

void Scheduler::PlanRows(Sequence& sequence, int num_rows) {
  plan_.rows.push_back({&sequence, num_rows, num_rows == sequence.num_pending()});
  rows_left_ -= num_rows;
}

}  // namespace assay
