// Which rows run in the next forward pass. Pure: no thread, no clock, no model.
//
// Continuous batching. Each step holds one row of every sequence that is decoding, then chunks of
// prompts in order of arrival, then newcomers, up to max_step_tokens rows. Newcomers are taken in
// order of urgency (urgency.h) and strictly: nobody overtakes one that does not fit yet. A newcomer
// gets the blocks for all its tokens at once, so only decoding can run out of them; then the
// youngest running sequence is preempted: it loses its blocks (its full ones stay cached), keeps
// its tokens, and goes to the front of the queue to be computed again. The oldest running sequence
// is never preempted for another, hence the batch always progresses.
//
// At most max_step_tokens sequences run at once, so that every one can get a row in every step and
// decoding cannot starve prompts.
//
// Thread rule: loop thread only. Next() does not allocate once its vectors have grown.
#pragma once
#include <memory>
#include <span>
#include <vector>

#include "engine/runtime/sequence_state.h"

namespace assay {

struct SchedulerOptions {
  int max_sequences = 64;
  int max_step_tokens = 512;
  // Decode steps compute other keys and values than prefill does for the same tokens (activation
  // mode a8_mix): blocks that hold any are neither shared nor looked up.
  bool share_prompts_only = false;
};

// What Next() decided. Valid until the next call of it.
struct StepPlan {
  struct Rows {
    Sequence* sequence = nullptr;  // rows are tokens [num_computed, num_computed + num_rows)
    int num_rows = 0;
    bool sample = false;  // the last row is the sequence's last token: its logits are wanted
  };
  std::vector<Rows> rows;          // decoding sequences first
  std::vector<Sequence*> started;  // left the queue for the first time
  // Their deadline passed, or start_by in the queue; the caller ends them.
  std::vector<std::unique_ptr<Sequence>> expired;
  int num_preempted = 0;
};

class Scheduler {
 public:
  // `kv` outlives the scheduler.
  Scheduler(const SchedulerOptions& options, KvCache& kv);

  // REQUIRES: ids ascend; the sequence alone fits into the cache with all that it may generate.
  void Add(std::unique_ptr<Sequence> sequence);
  StepPlan& Next(absl::Time now);
  // The rows were computed: their keys and values are in the cache.
  void Advance(const StepPlan::Rows& rows);
  // Takes a sequence out, wherever it is, and frees its blocks. Null: no such sequence.
  std::unique_ptr<Sequence> Remove(SequenceId id);
  // Takes out whichever is left; null when none is.
  std::unique_ptr<Sequence> RemoveAny();

  int num_waiting() const { return static_cast<int>(waiting_.size() + preempted_.size()); }
  int num_running() const { return static_cast<int>(running_.size()); }
  bool empty() const { return num_waiting() == 0 && num_running() == 0; }

 private:
  using Queue = std::vector<std::unique_ptr<Sequence>>;

  void Expire(Queue& queue, absl::Time now);
  void PlanDecodes();
  void PlanPrefills();
  void Admit();
  bool Start(Queue& queue);
  void PreemptYoungest();
  void PlanRows(Sequence& sequence, int num_rows);
  // The first tokens of the sequence, up to `count`, that may be shared.
  std::span<const int32_t> Shareable(const Sequence& s, size_t count) const;

  const SchedulerOptions options_;
  KvCache& kv_;
  Queue waiting_;    // most urgent first
  Queue preempted_;  // by id; before all of waiting_
  Queue running_;    // by id
  StepPlan plan_;
  int rows_left_ = 0;
};

}  // namespace assay
