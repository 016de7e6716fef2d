// Measures a candidate against its reference, with the kernels and the KV precision that will
// serve. The reference is the same checkpoint with every linear in f32 and an f32 KV cache.
//
// The reference runs once, when the verifier is made; what it computed is kept
// (reference_outputs.h), so that it may be freed and measuring another candidate costs that
// candidate's passes alone. One thread uses a Verifier.
#pragma once
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "engine/lifecycle/evaluation.h"
#include "engine/lifecycle/reference_outputs.h"
#include "engine/lifecycle/report.h"

namespace assay {

class Verifier {
 public:
  // Decoders: when a part of the set is enough to know the answer. Looked at after every document.
  // Reject: from the second document on, when even the lower bound of mean KL (Student's t) is
  // above kHopeless times the budget. A candidate inside the budget is refused so only if its
  // documents miss its mean by a factor of four, all alike; and what follows is the next attempt.
  // Accept: at a quarter and at half of the documents, at least four, when mean KL plus twice the
  // half-width of its interval is inside. With n documents that is beyond the quantile 0.996
  // (n = 4) to 0.99996 of Student's t, so that both looks together raise the chance of admitting a
  // candidate that is at its budget from 2.5 % to at most 3.3 %. For searches, which verify their
  // winner on the whole set: a certificate wants all of it.
  static constexpr double kHopeless = 4;
  struct EarlyStop {
    double max_mean_kl = 0;
    bool accept = false, reject = true;
    double hopeless = kHopeless;  // budgets; less where another recipe waits to be tried
  };
  struct Extent {  // how much of the set is used
    int documents = 1 << 20;
    int tokens = 1 << 20;                      // of each document (encoders: all of it)
    bool decode_path = true;                   // left out when the comparison stopped early
    bool decode_phase = false;                 // decoders: rows are computed as decode steps are
    int chunk_rows = kChunkRows;               // decoders: of one pass, at most kChunkRows
    const LinearObserver* observer = nullptr;  // of two documents; encoders: of the first pass
    std::optional<EarlyStop> early;
  };
  // Told how far a comparison is, 0..1; an error ends it.
  using Progress = std::function<absl::Status(double fraction)>;

  // set and pool outlive the verifier, the reference need not. ResourceExhausted; what the source
  // returns.
  static absl::StatusOr<std::unique_ptr<Verifier>> Create(const LayerSource& reference,
                                                          const EvaluationSet& set,
                                                          ThreadPool& pool,
                                                          const Progress& progress = nullptr);
  const ReferenceOutputs& reference() const { return reference_; }
  const EvaluationSet& set() const { return set_; }
  ThreadPool& pool() const { return pool_; }
  // All figures of the model's task; non-finite results and a decode path that disagrees with
  // prefill become defects. `failures` stays empty: see CheckBudget.
  absl::StatusOr<VerificationResult> Compare(const Model& candidate, const KvFormat& kv_format,
                                             const Extent& extent, const Progress& progress);
  // What a candidate computes. Decoders: logits [count, vocab] of `count` tokens from `start` on,
  // count <= kChunkRows; encoders: rows of `count` documents from `document` on. Valid until the
  // next call.
  using Outputs =
      std::function<absl::StatusOr<std::span<const float>>(size_t document, int start, int count)>;
  // Compare of a candidate that somebody else runs, without the decode path.
  absl::StatusOr<VerificationResult> CompareOutputs(const Outputs& outputs, const Extent& extent,
                                                    const Progress& progress);
  // The first slot whose input or output is not finite when `model` runs the set's first document:
  // "output of model.layers.3.mlp.down_proj". Empty when all are finite.
  absl::StatusOr<std::string> FindNotFinite(const Model& model);

 private:
  Verifier(ReferenceOutputs reference, const EvaluationSet& set, ThreadPool& pool)
      : reference_(std::move(reference)), set_(set), pool_(pool) {}

  absl::StatusOr<VerificationResult> CompareDecoder(const Outputs& outputs, const Extent& extent,
                                                    const Progress& progress);
  absl::StatusOr<VerificationResult> CompareEncoder(const Outputs& outputs, const Extent& extent,
                                                    const Progress& progress);
  absl::Status CompareDecodePath(const Model& candidate, const KvFormat& kv_format,
                                 VerificationResult& result);

  ReferenceOutputs reference_;
  const EvaluationSet& set_;
  ThreadPool& pool_;
};

// Whether the documents so far decide (see EarlyStop). `mean_kl`: over `done` of `all` documents.
bool DecidesEarly(const Verifier::EarlyStop& early, const Estimate& mean_kl, int done, int all);

// What of `result` is outside the budget, one sentence each; defects are not repeated. The primary
// figure, mean KL or mean cosine, must keep to it with the farther bound of its 95 % intervals; the
// others are guards and are held to it by their value, as several bounds at once would refuse good
// candidates by chance.
std::vector<std::string> CheckBudget(const VerificationResult& result, const Budget& budget,
                                     ModelTask task);
// The same of a slice, too few documents for a bound: every figure by its value, each sentence with
// the slice's name. Decoders.
std::vector<std::string> CheckSlice(const SliceReport& slice, const Budget& budget);

}  // namespace assay
