// The bert family: BERT, MiniLM, DistilBERT, RoBERTa. Post-norm encoder with learned absolute
// positions (Devlin et al. 2018; the variants as transformers 5.23 computes them), then mean or
// first-token pooling for embeddings, or a classification head on the first token.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "base/thread_pool.h"
#include "engine/model/families/bert_spec.h"
#include "engine/model/families/bert_tables.h"
#include "engine/model/families/families.h"
#include "engine/model/families/forward_parts.h"

namespace assay {
namespace {

using Norm = BertTables::Norm;
struct Layer {
  BoundLinear qkv, attention_output, intermediate, output;
  const BertTables::Layer* norms = nullptr;
};

class BertModel final : public Model {
 public:
  static absl::StatusOr<std::unique_ptr<const Model>> Build(const ModelSpec& spec,
                                                            const Checkpoint& checkpoint,
                                                            LinearMap linears);

  const ModelSpec& spec() const override { return spec_; }
  const std::vector<LinearSlot>& slots() const override { return slots_; }
  const LinearMap& linears() const override { return linears_; }
  absl::Status Forward(const ForwardArgs& args, ComputeContext& context) const override;
  size_t scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context_tokens) const override;
  size_t other_weight_bytes() const override;

 private:
  BertModel(ModelSpec spec, LinearMap linears, const Ops& ops)
      : spec_(std::move(spec)),
        slots_(BertSlots(spec_)),
        linears_(std::move(linears)),
        ops_(ops),
        activation_(*FindActivation(spec_.activation)),
        head_activation_(*FindActivation(NamesOf(spec_).head_activation)) {}

  absl::Status BindLinears();
  absl::Status ReadHead(const Checkpoint& checkpoint);

  absl::Status CheckPart(const LayerPart& part) const;  // its linears are there
  void EmbedPositions(const Pass& pass, MutableView x) const;
  absl::Status Attend(const Pass& pass, const Layer& layer, MutableView x, MutableView sum) const;
  absl::Status Mlp(const Pass& pass, const Layer& layer, MutableView x, MutableView product) const;
  void Pool(const Pass& pass, TensorView x) const;
  absl::Status Classify(const Pass& pass, TensorView x) const;

  void LayerNorm(const Pass& pass, const Norm& norm, MutableView x) const {
    ops_.LayerNorm(x, norm.gain.view(), norm.bias.view(), spec_.norm_eps, x, pass.context);
  }

  const ModelSpec spec_;
  const std::vector<LinearSlot> slots_;
  const LinearMap linears_;
  const Ops& ops_;
  const Activation activation_, head_activation_;
  BoundLinear words_;
  BertTables tables_;
  std::vector<Layer> layers_;
  std::vector<QuantizedLinear> head_;  // f32: {dense, out}, or empty
};

absl::Status BertModel::BindLinears() {
  ASSIGN_OR_RETURN(words_, Bind(slots_.front(), linears_));
  layers_.resize(spec_.layers);
  const LinearSlot* slot = &slots_[1];
  for (Layer& layer : layers_) {
    for (BoundLinear* to :
         {&layer.qkv, &layer.attention_output, &layer.intermediate, &layer.output}) {
      ASSIGN_OR_RETURN(*to, Bind(*slot++, linears_));
    }
  }
  return absl::OkStatus();
}

absl::Status BertModel::ReadHead(const Checkpoint& checkpoint) {
  ASSIGN_OR_RETURN(const QuantScheme* f32, FindScheme("f32"));
  for (const LinearSlot& slot : BertHeadSlots(spec_)) {
    ASSIGN_OR_RETURN(QuantizedLinear linear, EncodeSlot(checkpoint, slot, *f32, {}));
    head_.push_back(std::move(linear));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<const Model>> BertModel::Build(const ModelSpec& spec,
                                                              const Checkpoint& checkpoint,
                                                              LinearMap linears) {
  ASSIGN_OR_RETURN(const Ops* ops, OpsFor(CpuDevice()));
  std::unique_ptr<BertModel> model(new BertModel(spec, std::move(linears), *ops));
  RETURN_IF_ERROR(model->BindLinears());
  ASSIGN_OR_RETURN(model->tables_, BertTables::Read(spec, checkpoint));
  for (size_t i = 0; i < model->layers_.size(); ++i)
    model->layers_[i].norms = &model->tables_.layers[i];
  RETURN_IF_ERROR(model->ReadHead(checkpoint));
  return std::unique_ptr<const Model>(std::move(model));
}

absl::Status BertModel::CheckPart(const LayerPart& part) const {
  if (part.first == 0) RETURN_IF_ERROR(CheckThere({words_}));
  for (int i = part.first; i < part.end; ++i) {
    const Layer& layer = layers_[i];
    RETURN_IF_ERROR(
        CheckThere({layer.qkv, layer.attention_output, layer.intermediate, layer.output}));
  }
  return absl::OkStatus();
}

absl::Status BertModel::Forward(const ForwardArgs& args, ComputeContext& context) const {
  RETURN_IF_ERROR(CheckEncoderBatch(spec_, args));
  ASSIGN_OR_RETURN(const LayerPart part, PartOf(spec_, args));
  RETURN_IF_ERROR(CheckPart(part));
  const auto rows = static_cast<int64_t>(args.batch.tokens.size());
  if (rows == 0) return absl::OkStatus();
  const Arena::Scope scope(context.scratch);
  Scratch scratch(context.scratch);
  const MutableView x = scratch.Matrix(rows, spec_.hidden);
  const MutableView product = scratch.Matrix(rows, spec_.hidden);
  if (!scratch.ok()) return scratch.Exhausted();
  const Pass pass(ops_, args, context);
  const auto embed = [&] {
    pass.Embed(*words_.linear, args.batch.tokens, x);
    EmbedPositions(pass, x);
    LayerNorm(pass, tables_.embedding_norm, x);
  };
  RETURN_IF_ERROR(RunLayers(part, x, embed, [&](int i) {
    RETURN_IF_ERROR(Attend(pass, layers_[i], x, product));
    return Mlp(pass, layers_[i], x, product);
  }));
  if (part.end < spec_.layers) return absl::OkStatus();
  if (spec_.task == ModelTask::kClassify) return Classify(pass, x);
  Pool(pass, x);
  return absl::OkStatus();
}

// x += the row's segment and position.
void BertModel::EmbedPositions(const Pass& pass, MutableView x) const {
  const ForwardBatch& batch = pass.args.batch;
  const int64_t d = spec_.hidden;
  for (const SequenceSpan& s : batch.sequences) {
    for (int64_t i = 0; i < s.num_rows; ++i) {
      const int64_t row = s.first_row + i;
      float* to = x.as<float>() + row * d;
      const float* position = tables_.positions.data<float>() + (spec_.position_offset + i) * d;
      if (tables_.types.empty()) {
        for (int64_t c = 0; c < d; ++c) to[c] += position[c];
        continue;
      }
      const int32_t id = batch.token_types.empty() ? 0 : batch.token_types[row];
      const float* type = tables_.types.data<float>() + id * d;
      for (int64_t c = 0; c < d; ++c) to[c] = to[c] + type[c] + position[c];
    }
  }
}

// x = norm(x + output(attention(x)))
absl::Status BertModel::Attend(const Pass& pass, const Layer& layer, MutableView x,
                               MutableView product) const {
  const Arena::Scope scope(pass.context.scratch);
  Scratch scratch(pass.context.scratch);
  const int64_t stride = int64_t{3} * spec_.hidden;
  const MutableView qkv = scratch.Matrix(x.shape[0], stride);
  const MutableView attended = scratch.Matrix(x.shape[0], spec_.hidden);
  if (!scratch.ok()) return scratch.Exhausted();
  RETURN_IF_ERROR(pass.Linear(layer.qkv, x, qkv));
  const float* q = qkv.as<float>();
  const AttentionArgs attention{.q = {q, stride},
                                .heads = spec_.heads,
                                .kv_heads = spec_.heads,
                                .head_dim = spec_.head_dim,
                                .scale = 1.0f / std::sqrt(static_cast<float>(spec_.head_dim)),
                                .y = attended};
  ops_.SelfAttention(attention, {q + spec_.hidden, stride}, {q + int64_t{2} * spec_.hidden, stride},
                     pass.args.batch, pass.context);
  RETURN_IF_ERROR(pass.LinearAdd(layer.attention_output, attended, x, product));
  LayerNorm(pass, layer.norms->attention_norm, x);
  return absl::OkStatus();
}

// x = norm(x + output(activation(intermediate(x))))
absl::Status BertModel::Mlp(const Pass& pass, const Layer& layer, MutableView x,
                            MutableView product) const {
  const Arena::Scope scope(pass.context.scratch);
  Scratch scratch(pass.context.scratch);
  const MutableView inner = scratch.Matrix(x.shape[0], spec_.ffn);
  if (!scratch.ok()) return scratch.Exhausted();
  RETURN_IF_ERROR(pass.Linear(layer.intermediate, x, inner));
  ops_.Activate(activation_, inner, pass.context);
  RETURN_IF_ERROR(pass.LinearAdd(layer.output, inner, x, product));
  LayerNorm(pass, layer.norms->output_norm, x);
  return absl::OkStatus();
}

void PoolRows(const float* x, int64_t rows, std::span<float> out) {
  const auto d = static_cast<int64_t>(out.size());
  std::copy_n(x, d, out.begin());
  for (int64_t r = 1; r < rows; ++r) {
    for (int64_t c = 0; c < d; ++c) out[c] += x[r * d + c];
  }
  const float scale = 1.0f / static_cast<float>(rows);
  for (float& v : out) v *= scale;
}

void Normalize(std::span<float> v) {
  double squares = 0;
  for (const float f : v) squares += double{f} * f;
  // torch.nn.functional.normalize's epsilon.
  const double scale = 1.0 / std::max(std::sqrt(squares), 1e-12);
  for (float& f : v) f = static_cast<float>(f * scale);
}

void BertModel::Pool(const Pass& pass, TensorView x) const {
  const std::span<const SequenceSpan> sequences = pass.args.batch.sequences;
  const auto d = static_cast<size_t>(spec_.hidden);
  const auto count = static_cast<int64_t>(sequences.size());
  pass.context.pool.ParallelFor(count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const std::span<float> out(pass.args.out.as<float>() + i * spec_.hidden, d);
      const float* first = x.as<float>() + int64_t{sequences[i].first_row} * spec_.hidden;
      PoolRows(first, spec_.pooling == Pooling::kCls ? 1 : sequences[i].num_rows, out);
      if (spec_.normalize) Normalize(out);
    }
  });
}

absl::Status BertModel::Classify(const Pass& pass, TensorView x) const {
  const std::span<const SequenceSpan> sequences = pass.args.batch.sequences;
  const auto count = static_cast<int64_t>(sequences.size());
  const Arena::Scope scope(pass.context.scratch);
  Scratch scratch(pass.context.scratch);
  const MutableView first = scratch.Matrix(count, spec_.hidden);
  const MutableView dense = scratch.Matrix(count, spec_.hidden);
  if (!scratch.ok()) return scratch.Exhausted();
  for (int64_t i = 0; i < count; ++i) {
    std::copy_n(x.as<float>() + int64_t{sequences[i].first_row} * spec_.hidden, spec_.hidden,
                first.as<float>() + i * spec_.hidden);
  }
  head_[0].Forward(first, dense, pass.context);
  ops_.Activate(head_activation_, dense, pass.context);
  head_[1].Forward(dense, pass.args.out, pass.context);
  return absl::OkStatus();
}

size_t BertModel::scratch_bytes(int64_t rows, int64_t, int64_t context_tokens) const {
  size_t attention =
      ops_.attention_scratch_bytes(rows, context_tokens, spec_.heads, spec_.head_dim);
  size_t mlp = 0, head = 0;
  for (const Layer& layer : layers_) {
    attention = std::max({attention, LinearScratch(layer.qkv.linear, rows),
                          LinearScratch(layer.attention_output.linear, rows)});
    mlp = std::max({mlp, LinearScratch(layer.intermediate.linear, rows),
                    LinearScratch(layer.output.linear, rows)});
  }
  for (const QuantizedLinear& linear : head_) head = std::max(head, LinearScratch(&linear, rows));
  attention += Scratch::bytes(rows, int64_t{3} * spec_.hidden) + Scratch::bytes(rows, spec_.hidden);
  mlp += Scratch::bytes(rows, spec_.ffn);
  head += 2 * Scratch::bytes(rows, spec_.hidden);  // at most one sequence per row
  return 2 * Scratch::bytes(rows, spec_.hidden) + std::max({attention, mlp, head});
}

size_t BertModel::other_weight_bytes() const {
  size_t bytes = tables_.bytes();
  for (const QuantizedLinear& linear : head_) bytes += linear.bytes();
  return bytes;
}

}  // namespace

ModelFamily BertFamily() {
  return {.name = "bert",
          .matches = IsBert,
          .parse = ParseBert,
          .slots = BertSlots,
          .folds = BertFolds,
          .build = BertModel::Build};
}

}  // namespace assay
