// What the families' forward passes share: checks of a batch, scratch with a known bound, linear
// layers with their observer, vectors read from a checkpoint.
#pragma once
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "engine/model/model.h"
#include "engine/ops/ops.h"

namespace assay {

// InvalidArgument: a token outside [0, vocab), a position outside [0, max_context), spans that do
// not cover the rows in order, too few KV blocks or one outside the pool, a slot that the pool does
// not have, logit rows out of order.
absl::Status CheckBatch(const ModelSpec& spec, const ForwardBatch& batch);
// ... of this part of the stack.
absl::Status CheckKv(const ModelSpec& spec, const ForwardArgs& args, const LayerPart& part);
// InvalidArgument: `out` is not f32 [rows, columns].
absl::Status CheckOut(const MutableView& out, int64_t rows, int64_t columns);

// Encoders: columns of their output.
inline int64_t EncoderColumns(const ModelSpec& spec) {
  return spec.task == ModelTask::kClassify ? spec.num_labels : spec.hidden;
}
// CheckBatch, and InvalidArgument: a sequence that does not begin at position 0, token types that
// are not one per row or outside [0, type_vocab), an output of another shape.
absl::Status CheckEncoderBatch(const ModelSpec& spec, const ForwardArgs& args);

// args.part, or all of the stack. InvalidArgument: layers outside of it, or a stream that is not
// f32 [rows, hidden].
absl::StatusOr<LayerPart> PartOf(const ModelSpec& spec, const ForwardArgs& args);

// One slot of a built model.
struct BoundLinear {
  const LinearSlot* slot = nullptr;
  const QuantizedLinear* linear = nullptr;  // null: not there
};
// NotFound names the slot; InvalidArgument: the linear has another shape.
absl::StatusOr<BoundLinear> Bind(const LinearSlot& slot, const LinearMap& linears);
// FailedPrecondition names the first that is not there.
absl::Status CheckThere(std::initializer_list<BoundLinear> linears);

// InvalidArgument: what the linear says of keys is of another width than kv_heads x head_dim.
absl::Status CheckKeys(const BoundLinear& l, const ModelSpec& spec);

// Matrices f32, and marks of rows, from the arena of one forward pass. The arena has a fixed end,
// so every taker checks ok() once, before it computes.
class Scratch {
 public:
  explicit Scratch(Arena& arena) : arena_(arena) {}
  MutableView Matrix(int64_t rows, int64_t columns);
  // ComputeContext::decode_rows of a decoder's batch.
  uint8_t* DecodeRows(const ForwardBatch& batch);
  bool ok() const { return ok_; }
  absl::Status Exhausted() const;  // Internal, with the arena's capacity
  static size_t bytes(int64_t rows, int64_t columns) {
    return static_cast<size_t>(rows * columns) * sizeof(float) + 64;
  }
  static size_t decode_rows_bytes(int64_t rows) { return static_cast<size_t>(rows) + 64; }

 private:
  Arena& arena_;
  bool ok_ = true;
};

// One forward pass: the operands that every step needs.
class Pass {
 public:
  Pass(const Ops& ops, const ForwardArgs& args, ComputeContext& context)
      : ops(ops), args(args), context(context) {}

  // y = linear(x); the observer sees it. Internal, naming layer and kernel: the arena is too small.
  absl::Status Linear(const BoundLinear& l, TensorView x, MutableView y) const;
  // y += linear(x). With an observer the product is computed into `product` first, so that it sees
  // the layer's own output.
  absl::Status LinearAdd(const BoundLinear& l, TensorView x, MutableView y,
                         MutableView product) const;
  // Rows of an embedding table: y[i] = table[ids[i]].
  void Embed(const QuantizedLinear& table, std::span<const int32_t> ids, MutableView y) const;

  const Ops& ops;
  const ForwardArgs& args;
  ComputeContext& context;
};

// Runs layers part.first to part.end - 1 on x [rows, hidden]: `embed()` computes what enters layer
// 0, `layer(i)` one layer in place.
template <typename EmbedFn, typename LayerFn>
absl::Status RunLayers(const LayerPart& part, MutableView x, EmbedFn embed, LayerFn layer) {
  if (part.first == 0) {
    embed();
  } else {
    std::memcpy(x.data, part.stream.data, x.bytes());
  }
  for (int i = part.first; i < part.end; ++i) RETURN_IF_ERROR(layer(i));
  if (!part.stream.empty()) std::memcpy(part.stream.data, x.data, x.bytes());
  return absl::OkStatus();
}

// Scratch of one linear for any number of rows up to `rows`; none of one that is not there.
size_t LinearScratch(const QuantizedLinear* linear, int64_t rows);

// One slot of the checkpoint in one scheme, rounded to nearest. Whatever ReadSlotWeight,
// QuantScheme and QuantizedLinear::Create return.
absl::StatusOr<QuantizedLinear> EncodeSlot(const Checkpoint& checkpoint, const LinearSlot& slot,
                                           const QuantScheme& scheme, const LinearOptions& options);

// A vector or matrix of the checkpoint as f32. NotFound; InvalidArgument: another shape.
absl::StatusOr<Tensor> ReadTensor(const Checkpoint& checkpoint, const std::string& name,
                                  Shape shape);

}  // namespace assay
