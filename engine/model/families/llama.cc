// The llama family: Llama 2 and 3, SmolLM2, Mistral, Qwen2, Qwen3. Pre-norm decoder with rotary
// positions, grouped key and value heads and a silu-gated MLP (Touvron et al. 2023; the variants as
// transformers 5.23 computes them).
#include <algorithm>
#include <cmath>
#include <optional>

#include "base/thread_pool.h"
#include "engine/model/families/families.h"
#include "engine/model/families/forward_parts.h"
#include "engine/model/families/llama_spec.h"
#include "engine/model/rotation.h"

namespace assay {
namespace {

struct Layer {
  Tensor input_norm, post_attention_norm;  // [hidden]
  Tensor q_norm, k_norm;                   // [head_dim], qwen3
  BoundLinear qkv, o, gate_up, down;
};

class LlamaModel final : public Model {
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
  LlamaModel(ModelSpec spec, LinearMap linears, const Ops& ops)
      : spec_(std::move(spec)),
        slots_(LlamaSlots(spec_)),
        linears_(std::move(linears)),
        ops_(ops) {}

  absl::Status BindLinears();
  absl::Status CheckPart(const ForwardArgs& args, const LayerPart& part) const;  // all there
  absl::Status ReadNorms(const Checkpoint& checkpoint);
  absl::Status ReadRotation(const Checkpoint& checkpoint);

  // What lives through a whole pass.
  struct Work {
    MutableView x, normed;  // [rows, hidden]
    MutableView cos, sin;   // [rows, head_dim / 2] of the rows' positions
  };
  void FillRotations(const Pass& pass, const Work& work) const;
  void Embed(const Pass& pass, const Work& work) const;
  absl::Status Attend(const Pass& pass, int layer, const Work& work) const;
  absl::Status Mlp(const Pass& pass, const Layer& layer, MutableView x, MutableView normed) const;
  absl::Status Head(const Pass& pass, TensorView x) const;

  int64_t q_width() const { return int64_t{spec_.heads} * spec_.head_dim; }
  int64_t qkv_width() const { return q_width() + int64_t{2} * spec_.kv_heads * spec_.head_dim; }

  const ModelSpec spec_;
  const std::vector<LinearSlot> slots_;
  const LinearMap linears_;
  const Ops& ops_;
  BoundLinear embedding_, head_;
  std::vector<Layer> layers_;
  Tensor final_norm_;
  // Of the stream between embedding and final norm, where weights cannot hold it.
  std::optional<HadamardRotation> stream_;
};

absl::Status LlamaModel::BindLinears() {
  ASSIGN_OR_RETURN(embedding_, Bind(slots_.front(), linears_));
  if (spec_.tied_head) {
    head_ = embedding_;
  } else {
    ASSIGN_OR_RETURN(head_, Bind(slots_.back(), linears_));
  }
  layers_.resize(spec_.layers);
  for (int i = 0; i < spec_.layers; ++i) {
    const LinearSlot* slot = &slots_[1 + 4 * static_cast<size_t>(i)];
    for (BoundLinear* to :
         {&layers_[i].qkv, &layers_[i].o, &layers_[i].gate_up, &layers_[i].down}) {
      ASSIGN_OR_RETURN(*to, Bind(*slot++, linears_));
    }
    RETURN_IF_ERROR(CheckKeys(layers_[i].qkv, spec_));
  }
  return absl::OkStatus();
}

absl::Status LlamaModel::ReadNorms(const Checkpoint& checkpoint) {
  const Shape hidden{spec_.hidden}, head{spec_.head_dim};
  ASSIGN_OR_RETURN(final_norm_, ReadTensor(checkpoint, "model.norm.weight", hidden));
  for (int i = 0; i < spec_.layers; ++i) {
    const std::string prefix = LlamaLayerPrefix(i);
    Layer& layer = layers_[i];
    ASSIGN_OR_RETURN(layer.input_norm,
                     ReadTensor(checkpoint, prefix + "input_layernorm.weight", hidden));
    ASSIGN_OR_RETURN(layer.post_attention_norm,
                     ReadTensor(checkpoint, prefix + "post_attention_layernorm.weight", hidden));
    if (!spec_.qk_norm) continue;
    ASSIGN_OR_RETURN(layer.q_norm,
                     ReadTensor(checkpoint, prefix + "self_attn.q_norm.weight", head));
    ASSIGN_OR_RETURN(layer.k_norm,
                     ReadTensor(checkpoint, prefix + "self_attn.k_norm.weight", head));
  }
  return absl::OkStatus();
}

absl::Status LlamaModel::ReadRotation(const Checkpoint& checkpoint) {
  if (!checkpoint.Find(kStreamRotation).ok()) return absl::OkStatus();
  ASSIGN_OR_RETURN(const Tensor read, ReadTensor(checkpoint, kStreamRotation, Shape{spec_.hidden}));
  const auto* values = read.data<float>();
  const std::vector<int8_t> signs(values, values + spec_.hidden);
  ASSIGN_OR_RETURN(stream_, HadamardRotation::Create(spec_.hidden, signs));
  return absl::OkStatus();
}

// Cosines and sines of every row's position. No table: one for 128k positions would take 64 MB and
// seconds to fill, while these cost a thousandth of the step that uses them in every layer.
void LlamaModel::FillRotations(const Pass& pass, const Work& work) const {
  const int64_t half = spec_.head_dim / 2;
  const ForwardBatch& batch = pass.args.batch;
  for (const SequenceSpan& s : batch.sequences) {
    pass.context.pool.ParallelFor(s.num_rows, 16, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * half; i < end * half; ++i) {
        // The angle in f32, as the models were trained with; its functions as exactly as f32 holds.
        const int64_t position = s.start_position + i / half;
        const double angle = static_cast<float>(position) * spec_.rope_inv_freq[i % half];
        const int64_t at = s.first_row * half + i;
        work.cos.as<float>()[at] = static_cast<float>(std::cos(angle)) * spec_.rope_attention_scale;
        work.sin.as<float>()[at] = static_cast<float>(std::sin(angle)) * spec_.rope_attention_scale;
      }
    });
  }
}

absl::StatusOr<std::unique_ptr<const Model>> LlamaModel::Build(const ModelSpec& spec,
                                                               const Checkpoint& checkpoint,
                                                               LinearMap linears) {
  ASSIGN_OR_RETURN(const Ops* ops, OpsFor(CpuDevice()));
  std::unique_ptr<LlamaModel> model(new LlamaModel(spec, std::move(linears), *ops));
  RETURN_IF_ERROR(model->BindLinears());
  RETURN_IF_ERROR(model->ReadNorms(checkpoint));
  RETURN_IF_ERROR(model->ReadRotation(checkpoint));
  return std::unique_ptr<const Model>(std::move(model));
}

absl::Status LlamaModel::CheckPart(const ForwardArgs& args, const LayerPart& part) const {
  if (part.first == 0) RETURN_IF_ERROR(CheckThere({embedding_}));
  for (int i = part.first; i < part.end; ++i) {
    const Layer& layer = layers_[i];
    RETURN_IF_ERROR(CheckThere({layer.qkv, layer.o, layer.gate_up, layer.down}));
  }
  const bool logits = args.head_input.data == nullptr && !args.batch.logit_rows.empty();
  return part.end == spec_.layers && logits ? CheckThere({head_}) : absl::OkStatus();
}

absl::Status LlamaModel::Forward(const ForwardArgs& args, ComputeContext& context) const {
  RETURN_IF_ERROR(CheckBatch(spec_, args.batch));
  ASSIGN_OR_RETURN(const LayerPart part, PartOf(spec_, args));
  RETURN_IF_ERROR(CheckKv(spec_, args, part));
  RETURN_IF_ERROR(CheckPart(args, part));
  const bool logits = args.head_input.data == nullptr;
  RETURN_IF_ERROR(CheckOut(logits ? args.out : args.head_input,
                           static_cast<int64_t>(args.batch.logit_rows.size()),
                           logits ? spec_.vocab : spec_.hidden));
  const auto rows = static_cast<int64_t>(args.batch.tokens.size());
  if (rows == 0) return absl::OkStatus();

  const Arena::Scope scope(context.scratch);
  Scratch scratch(context.scratch);
  const Work work{.x = scratch.Matrix(rows, spec_.hidden),
                  .normed = scratch.Matrix(rows, spec_.hidden),
                  .cos = scratch.Matrix(rows, spec_.head_dim / 2),
                  .sin = scratch.Matrix(rows, spec_.head_dim / 2)};
  ComputeContext phased = context;
  phased.decode_rows = scratch.DecodeRows(args.batch);
  if (!scratch.ok()) return scratch.Exhausted();
  const Pass pass(ops_, args, phased);
  FillRotations(pass, work);
  const auto embed = [&] { Embed(pass, work); };
  RETURN_IF_ERROR(RunLayers(part, work.x, embed, [&](int i) {
    RETURN_IF_ERROR(Attend(pass, i, work));
    return Mlp(pass, layers_[i], work.x, work.normed);
  }));
  return part.end == spec_.layers ? Head(pass, work.x) : absl::OkStatus();
}

void LlamaModel::Embed(const Pass& pass, const Work& work) const {
  const MutableView to = stream_.has_value() ? work.normed : work.x;
  pass.Embed(*embedding_.linear, pass.args.batch.tokens, to);
  if (!stream_.has_value()) return;
  pass.context.pool.ParallelFor(to.shape[0], 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      stream_->Rotate(to.as<float>() + i * spec_.hidden, work.x.as<float>() + i * spec_.hidden);
  });
}

// x += o(attention(norm(x)))
absl::Status LlamaModel::Attend(const Pass& pass, int index, const Work& work) const {
  const auto& [x, normed, cos, sin] = work;
  const Layer& layer = layers_[index];
  ComputeContext& context = pass.context;
  const ForwardBatch& batch = pass.args.batch;
  const Arena::Scope scope(context.scratch);
  Scratch scratch(context.scratch);
  const int64_t rows = x.shape[0], stride = qkv_width();
  const MutableView qkv = scratch.Matrix(rows, stride);
  const MutableView attended = scratch.Matrix(rows, q_width());
  if (!scratch.ok()) return scratch.Exhausted();

  ops_.RmsNorm(x, layer.input_norm.view(), spec_.norm_eps, normed, context);
  RETURN_IF_ERROR(pass.Linear(layer.qkv, normed, qkv));
  float* q = qkv.as<float>();
  float* k = q + q_width();
  if (spec_.qk_norm) {
    ops_.HeadRmsNorm(q, stride, rows, spec_.heads, layer.q_norm.view(), spec_.norm_eps, context);
    ops_.HeadRmsNorm(k, stride, rows, spec_.kv_heads, layer.k_norm.view(), spec_.norm_eps, context);
  }
  // The heads of k lie behind those of q: one call rotates both.
  ops_.Rope(q, stride, spec_.heads + spec_.kv_heads, cos, sin, context);
  const float* v = k + int64_t{spec_.kv_heads} * spec_.head_dim;
  ops_.StoreKv({k, stride}, {v, stride}, batch, index, *pass.args.kv, context);
  const AttentionArgs attention{
      .q = {q, stride},
      .k = {k, stride},
      .v = {v, stride},
      .heads = spec_.heads,
      .kv_heads = spec_.kv_heads,
      .head_dim = spec_.head_dim,
      .scale = 1.0f / std::sqrt(static_cast<float>(spec_.head_dim)),
      .sliding_window = index >= spec_.window_first_layer ? spec_.sliding_window : 0,
      .y = attended};
  ops_.PagedAttention(attention, batch, index, *pass.args.kv, context);
  ops_.StoreRecent({k, stride}, {v, stride}, batch, index, *pass.args.kv, context);
  RETURN_IF_ERROR(pass.LinearAdd(layer.o, attended, x, normed));
  return absl::OkStatus();
}

// x += down(silu(gate(norm(x))) * up(norm(x)))
absl::Status LlamaModel::Mlp(const Pass& pass, const Layer& layer, MutableView x,
                             MutableView normed) const {
  const Arena::Scope scope(pass.context.scratch);
  Scratch scratch(pass.context.scratch);
  const MutableView gate_up = scratch.Matrix(x.shape[0], int64_t{2} * spec_.ffn);
  const MutableView gated = scratch.Matrix(x.shape[0], spec_.ffn);
  if (!scratch.ok()) return scratch.Exhausted();
  ops_.RmsNorm(x, layer.post_attention_norm.view(), spec_.norm_eps, normed, pass.context);
  RETURN_IF_ERROR(pass.Linear(layer.gate_up, normed, gate_up));
  ops_.GatedActivation(Activation::kSilu, gate_up, gated, pass.context);
  RETURN_IF_ERROR(pass.LinearAdd(layer.down, gated, x, normed));
  return absl::OkStatus();
}

absl::Status LlamaModel::Head(const Pass& pass, TensorView x) const {
  const std::span<const int32_t> wanted = pass.args.batch.logit_rows;
  if (wanted.empty()) return absl::OkStatus();
  const Arena::Scope scope(pass.context.scratch);
  Scratch scratch(pass.context.scratch);
  const MutableView last = scratch.Matrix(static_cast<int64_t>(wanted.size()), spec_.hidden);
  auto* phases = pass.context.scratch.TryAllocate<uint8_t>(wanted.size());
  if (!scratch.ok() || phases == nullptr) return scratch.Exhausted();
  for (size_t i = 0; i < wanted.size(); ++i) {
    const float* from = x.as<float>() + int64_t{wanted[i]} * spec_.hidden;
    float* to = last.as<float>() + static_cast<int64_t>(i) * spec_.hidden;
    if (stream_.has_value()) {
      stream_->RotateBack(from, to);
    } else {
      std::copy_n(from, spec_.hidden, to);
    }
    phases[i] = pass.context.decode_rows[wanted[i]];
  }
  ops_.RmsNorm(last, final_norm_.view(), spec_.norm_eps, last, pass.context);
  if (pass.args.head_input.data != nullptr) {
    std::copy_n(last.as<float>(), last.shape.elements(), pass.args.head_input.as<float>());
    return absl::OkStatus();
  }
  ComputeContext phased = pass.context;
  phased.decode_rows = phases;
  return Pass(ops_, pass.args, phased).Linear(head_, last, pass.args.out);
}

size_t LlamaModel::scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context_tokens) const {
  size_t attention =
      ops_.attention_scratch_bytes(rows, context_tokens, spec_.heads, spec_.head_dim);
  size_t mlp = 0;
  for (const Layer& layer : layers_) {
    attention = std::max(
        {attention, LinearScratch(layer.qkv.linear, rows), LinearScratch(layer.o.linear, rows)});
    mlp = std::max(
        {mlp, LinearScratch(layer.gate_up.linear, rows), LinearScratch(layer.down.linear, rows)});
  }
  attention += Scratch::bytes(rows, qkv_width()) + Scratch::bytes(rows, q_width());
  mlp += Scratch::bytes(rows, int64_t{2} * spec_.ffn) + Scratch::bytes(rows, spec_.ffn);
  const size_t head = Scratch::bytes(logit_rows, spec_.hidden) +
                      Scratch::decode_rows_bytes(logit_rows) +
                      LinearScratch(head_.linear, logit_rows);
  return 2 * Scratch::bytes(rows, spec_.hidden) + Scratch::decode_rows_bytes(rows) +
         2 * Scratch::bytes(rows, spec_.head_dim / 2) + std::max({attention, mlp, head});
}

size_t LlamaModel::other_weight_bytes() const {
  size_t bytes = final_norm_.bytes();
  for (const Layer& layer : layers_) {
    bytes += layer.input_norm.bytes() + layer.post_attention_norm.bytes();
    if (spec_.qk_norm) bytes += layer.q_norm.bytes() + layer.k_norm.bytes();
  }
  return bytes;
}

}  // namespace

ModelFamily LlamaFamily() {
  return {.name = "llama",
          .matches = IsLlama,
          .parse = ParseLlama,
          .slots = LlamaSlots,
          .folds = LlamaFolds,
          .build = LlamaModel::Build};
}

}  // namespace assay
