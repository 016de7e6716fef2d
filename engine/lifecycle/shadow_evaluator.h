// One request that was served, computed again: by the model that serves, as it is in memory now,
// and by the f32 reference, whose weights stay in the checkpoint's file
// (engine/model/file_model.h). Teacher-forced: both see the tokens that were emitted.
//
// What the serving model computes again equals what it answered, because kernels are
// batch-invariant and the KV cache has the same format; ShadowScore::replay_difference says whether
// it did. Memory: logits of two passes over max_positions rows, the KV cache of one sequence, two
// slabs of a weight. Thread rule: one thread uses an evaluator; the model that serves is only read.
#pragma once
#include <functional>
#include <memory>
#include <string>

#include "engine/lifecycle/input_profile.h"
#include "engine/lifecycle/model_pass.h"
#include "engine/runtime/traffic.h"

namespace assay {

struct ShadowScore {
  int tokens = 0;     // that both models computed
  int positions = 0;  // that were compared
  // Decoders: KL(reference || served) in nats, mean over positions; encoders: 1 - cosine;
  // classifiers: 1 where the label differs. Infinite where something was not finite.
  double loss = 0;
  double clipped = 0;    // mean of min(loss, clip) / clip, in [0, 1]
  double top1_flip = 0;  // share of positions with another arg max
  // Decoders, over emitted tokens among the positions: log probability as it was served less the
  // reference's, mean; and as it was served against computed again, largest difference. In nats.
  double logprob_difference = 0, replay_difference = 0;
};

class ShadowEvaluator {
 public:
  struct Options {
    int max_positions = 64;
    double clip = 1;                 // of one position's loss
    uint64_t seed = 0;               // which positions of a long answer
    InputProfile* inputs = nullptr;  // sees the pass of the model that serves
  };
  // What the checkpoint's family returns.
  static absl::StatusOr<std::unique_ptr<ShadowEvaluator>> Create(
      std::shared_ptr<const Checkpoint> checkpoint);

  // Called between pieces of work; an error of it ends the scoring.
  using Pause = std::function<absl::Status()>;
  // InvalidArgument: fewer than two tokens (decoders), or tokens that the model does not know;
  // ResourceExhausted; DataLoss: the checkpoint's file is not what it was; what `pause` returns.
  absl::StatusOr<ShadowScore> Score(const Model& served, const KvFormat& kv_format,
                                    const ServedRequest& request, const Options& options,
                                    ThreadPool& pool, const Pause& pause) const;
  const ModelSpec& spec() const { return reference_->spec(); }

 private:
  ShadowEvaluator(std::shared_ptr<const Checkpoint> checkpoint,
                  std::unique_ptr<const Model> reference)
      : checkpoint_(std::move(checkpoint)), reference_(std::move(reference)) {}
  absl::StatusOr<ShadowScore> ScoreDecoder(const Model& served, const KvFormat& kv_format,
                                           const ServedRequest& request, const Options& options,
                                           ThreadPool& pool, const Pause& pause) const;
  absl::StatusOr<ShadowScore> ScoreEncoder(const Model& served, const ServedRequest& request,
                                           const Options& options, ThreadPool& pool,
                                           const Pause& pause) const;

  const std::shared_ptr<const Checkpoint> checkpoint_;
  const std::unique_ptr<const Model> reference_;
};

}  // namespace assay
