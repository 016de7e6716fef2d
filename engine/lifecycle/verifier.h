// Measures a candidate against its reference, with the kernels and the KV precision that will
// serve. The reference is the same checkpoint with every linear in f32 and an f32 KV cache.
//
// What the reference computed is kept (inputs of its output head, pooled embeddings), so measuring
// another candidate costs that candidate's passes alone. One thread uses a Verifier.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "engine/lifecycle/evaluation.h"
#include "engine/lifecycle/model_pass.h"
#include "engine/lifecycle/report.h"

namespace assay {

class Verifier {
 public:
  struct Extent {  // how much of the set is used
    int documents = 1 << 20;
    int tokens = 1 << 20;  // of each document
    bool decode_path = true;
  };
  // Told how far a comparison is, 0..1; an error ends it.
  using Progress = std::function<absl::Status(double fraction)>;

  // reference, set and pool outlive the verifier. ResourceExhausted.
  static absl::StatusOr<std::unique_ptr<Verifier>> Create(const Model& reference,
                                                          const EvaluationSet& set,
                                                          ThreadPool& pool);
  // All figures of the model's task; non-finite results and a decode path that disagrees with
  // prefill become defects. `failures` stays empty: see CheckBudget.
  absl::StatusOr<VerificationResult> Compare(const Model& candidate, DType kv_dtype,
                                             const Extent& extent, const Progress& progress);
  // SQNR in dB of every slot's output on the reference's own inputs (the first rows of the set).
  // Slots that are only looked up (embeddings) are absent.
  absl::StatusOr<std::map<std::string, double>> OutputSqnr(const LinearMap& candidate);
  // The first slot whose input or output is not finite when `model` runs the set's first document:
  // "output of model.layers.3.mlp.down_proj". Empty when all are finite.
  absl::StatusOr<std::string> FindNotFinite(const Model& model);

 private:
  Verifier(const Model& reference, const EvaluationSet& set, ThreadPool& pool)
      : reference_(reference), set_(set), pool_(pool), kept_(set.documents.size()) {}

  absl::StatusOr<VerificationResult> CompareDecoder(const Model& candidate, DType kv_dtype,
                                                    const Extent& extent, const Progress& progress);
  absl::StatusOr<VerificationResult> CompareEncoder(const Model& candidate, const Extent& extent,
                                                    const Progress& progress);
  absl::Status CompareDecodePath(const Model& candidate, DType kv_dtype,
                                 VerificationResult& result);
  // Logits [rows, vocab] of the reference for tokens [start, start + rows) of a document.
  absl::StatusOr<std::span<const float>> ReferenceLogits(size_t document, int start, int rows);
  absl::StatusOr<std::span<const float>> FromKept(size_t document, int start, int rows);

  const Model& reference_;
  const EvaluationSet& set_;
  ThreadPool& pool_;
  std::optional<ModelPass> pass_;          // of the reference
  const QuantizedLinear* head_ = nullptr;  // of the reference, once seen
  std::vector<std::vector<float>> kept_;   // by document: head inputs [tokens, hidden], or outputs
  std::vector<float> logits_;
};

// What of `result` is outside the budget, one sentence each; defects are not repeated.
std::vector<std::string> CheckBudget(const VerificationResult& result, const Budget& budget,
                                     ModelTask task);

}  // namespace assay
