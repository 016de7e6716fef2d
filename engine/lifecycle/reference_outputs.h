// What the f32 reference computes on an evaluation set, so that the reference itself may be freed:
// the inputs of its output head for every token (decoders) or its outputs (encoders), and some
// inputs of every linear layer. Memory: hidden floats for every token of the set, kLayerRows rows
// of every layer's input, and the head. While it runs one layer of the reference more.
// One thread uses it.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/lifecycle/document_streams.h"
#include "engine/lifecycle/evaluation.h"
#include "engine/lifecycle/layer_source.h"

namespace assay {

class ReferenceOutputs {
 public:
  static constexpr int64_t kLayerRows = 64;

  // Runs the reference over the whole set. `progress` may be empty; an error of it ends the run.
  // `set` and `pool` outlive the result, `reference` need not. ResourceExhausted; what the source
  // returns.
  static absl::StatusOr<ReferenceOutputs> Record(
      const LayerSource& reference, const EvaluationSet& set, ThreadPool& pool,
      const std::function<absl::Status(double fraction)>& progress);

  const ModelSpec& spec() const { return spec_; }
  // Decoders: logits [rows, vocab] for tokens [start, start + rows), rows <= kChunkRows, of a
  // document. Valid until the next call.
  std::span<const float> Logits(size_t document, int start, int rows);
  // Encoders: the output for a document.
  std::span<const float> Output(size_t document) const { return kept_[document]; }
  // The slot that is the output head, which is kept in f32; null for encoders.
  const std::shared_ptr<const QuantizedLinear>& head() const { return head_; }
  const std::string& head_slot() const { return head_slot_; }

  // SQNR in dB of a slot's output on the reference's own inputs (the first rows of the set).
  // Nothing for slots that are only looked up (embeddings). ResourceExhausted.
  absl::StatusOr<std::optional<double>> OutputSqnr(const std::string& slot,
                                                   const QuantizedLinear& original,
                                                   const QuantizedLinear& served) const;

 private:
  ReferenceOutputs(const ModelSpec& spec, ThreadPool& pool) : spec_(spec), pool_(&pool) {}

  // The head of a decoder, after the layers below it.
  absl::Status RecordHead(const LayerSource& reference, DocumentStreams& streams);
  // Keeps the first rows of a layer's input.
  void KeepInput(const LinearSlot& slot, TensorView x);

  ModelSpec spec_;
  ThreadPool* pool_;
  std::vector<std::vector<float>> kept_;  // by document: head inputs [tokens, hidden], or output
  std::map<std::string, std::vector<float>, std::less<>> inputs_;  // slot -> [rows, k]
  std::shared_ptr<const QuantizedLinear> head_;
  std::string head_slot_;
  std::optional<Arena> arena_;  // of the head
  std::vector<float> logits_;
};

}  // namespace assay
