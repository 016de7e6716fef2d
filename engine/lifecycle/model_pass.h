// Runs a model outside an engine: verification, warm-up. Owns the KV blocks and the scratch.
#pragma once
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "base/arena.h"
#include "engine/model/model.h"

namespace assay {

// One thread uses a ModelPass; the model and the pool outlive it.
class ModelPass {
 public:
  struct Size {
    int sequences = 1;     // decoders: live at once, each with its own KV blocks
    int context = 0;       // tokens of a sequence
    int64_t rows = 0;      // of one forward pass
    int64_t out_rows = 0;  // logits, or pooled sequences
    KvFormat kv_format = DType::kF32;
    // Decoders: of the layers that passes go through; 0 = all. Part of a stack only in f32 and f16.
    int first_layer = 0, layers = 0;
  };
  // ResourceExhausted.
  static absl::StatusOr<ModelPass> Create(const Model& model, const Size& size, ThreadPool& pool);

  struct Span {
    int sequence = 0;
    int start = 0;
    std::span<const int32_t> tokens;
    int32_t first_decode = INT32_MAX;           // rows at or behind this position are decode steps
    std::span<const int32_t> token_types = {};  // encoders; empty = all 0
  };
  // One forward pass. Decoders: logits of every row into `out` [rows, vocab] when `logits`, else
  // nothing is computed above the last layer; encoders: one row per span. `out` is ours and valid
  // until the next call; of a part that ends below the top it holds nothing.
  absl::StatusOr<std::span<const float>> Forward(std::span<const Span> spans, bool logits = true,
                                                 const LinearObserver* observer = nullptr,
                                                 const LayerPart* part = nullptr);
  // Decoders: for every row what the output head is multiplied by, [rows, hidden]. `out` may be the
  // stream of `part`.
  absl::Status ForwardToHead(std::span<const Span> spans, const LinearObserver* observer,
                             std::span<float> out, const LayerPart* part = nullptr);
  int64_t out_columns() const { return out_columns_; }
  // Of decoders: the cache, and which blocks of it a sequence has.
  const KvPool* kv() const { return kv_.has_value() ? &*kv_ : nullptr; }
  std::span<const int32_t> blocks(int sequence) const {
    return blocks_[static_cast<size_t>(sequence)];
  }
  ComputeContext context() { return {pool_, arena_}; }

 private:
  ModelPass(const Model& model, const Size& size, ThreadPool& pool, Arena arena);
  absl::Status MakeKv();
  // Fills tokens_, logit_rows_ and the sequences that a batch of these spans has.
  std::vector<SequenceSpan> Gather(std::span<const Span> spans, bool logits);

  const Model& model_;
  const Size size_;
  ThreadPool& pool_;
  Arena arena_;
  Tensor out_;  // empty until it is wanted: logits are as wide as the vocabulary
  int64_t out_columns_ = 0;
  std::optional<KvPool> kv_;
  std::vector<std::vector<int32_t>> blocks_;  // by sequence
  std::vector<int32_t> tokens_, logit_rows_, token_types_;
};

}  // namespace assay
