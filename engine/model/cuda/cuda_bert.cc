#include "engine/model/cuda/cuda_bert.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "engine/model/cuda/cuda_bert_weights.h"
#include "engine/model/cuda/encode_batch.h"
#include "engine/model/cuda/step_memory.h"
#include "engine/model/families/bert_spec.h"
#include "engine/model/families/forward_parts.h"

namespace assay {
namespace {

using Layer = CudaBertWeights::Layer;

Gate GateOf(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return Gate::kSilu;
    case Activation::kGelu:
      return Gate::kGelu;
    case Activation::kGeluTanh:
      return Gate::kGeluTanh;
    case Activation::kRelu:
      return Gate::kRelu;
    case Activation::kTanh:
      return Gate::kTanh;
  }
  return Gate::kNone;
}

class CudaBert final : public Model {
 public:
  CudaBert(const CudaBackend& backend, const CudaOpsKernels& ops, ModelSpec spec, LinearMap linears)
      : backend_(backend),
        ops_(ops),
        spec_(std::move(spec)),
        slots_(BertSlots(spec_)),
        linears_(std::move(linears)),
        gate_(GateOf(*FindActivation(spec_.activation))),
        head_gate_(GateOf(*FindActivation(NamesOf(spec_).head_activation))) {}
  ~CudaBert() override {
    if (stream_ != nullptr) backend_.device.runtime().DestroyStream(stream_);
  }
  absl::Status Load(const Checkpoint& checkpoint);

  const ModelSpec& spec() const override { return spec_; }
  const std::vector<LinearSlot>& slots() const override { return slots_; }
  const LinearMap& linears() const override { return linears_; }
  Device& device() const override { return backend_.device; }
  absl::Status Forward(const ForwardArgs& args, ComputeContext& context) const override;
  size_t scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context_tokens) const override;
  size_t other_weight_bytes() const override { return weights_.other_bytes; }

 private:
  // One batch: where it lies.
  struct Step {
    EncodeSizes sizes;
    const EncodeMemory& at;
    std::byte* memory;
    CudaScratch scratch;
    LaunchContext context;

    template <typename T>
    T* In(size_t offset) const {
      return reinterpret_cast<T*>(memory + offset);
    }
    const int32_t* Ints(size_t EncodeLayout::*part) const {
      return In<int32_t>(at.ints) + EncodeLayout(sizes).*part;
    }
  };
  absl::Status CheckArgs(const ForwardArgs& args) const;
  EncodeMemory MemoryFor(const EncodeSizes& sizes) const;

  absl::Status Reserve(size_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(steps_);
  absl::Status Run(const Step& step) const;
  absl::Status Embed(const Step& step) const;
  absl::Status Attend(const Step& step, const Layer& layer) const;
  absl::Status Attention(const Step& step, void* attended) const;
  absl::Status Quantize(const Step& step, const void* attended, RowForm form) const;
  absl::Status Mlp(const Step& step, const Layer& layer) const;
  absl::Status Pool(const Step& step) const;
  absl::Status Classify(const Step& step) const;
  // stream = norm(stream); normed = that, as `next` takes it, or in 16 bit for nobody.
  absl::Status Norm(const Step& step, const CudaBertWeights::Norm& norm,
                    const CudaLinear* next) const;
  // y = linear(normed), or y += that.
  absl::Status Product(const Step& step, const CudaLinear& linear, float* y, bool accumulate) const;
  const CudaLinear* NextOf(size_t layer) const {
    return layer < weights_.layers.size() ? weights_.layers[layer].qkv : nullptr;
  }
  absl::Status Done(int error, const char* op, int rows) const {
    if (error == 0) return absl::OkStatus();
    return backend_.device.Noted(CudaStatus(error, absl::StrCat(op, " rows=", rows)));
  }

  const CudaBackend backend_;
  const CudaOpsKernels& ops_;
  const ModelSpec spec_;
  const std::vector<LinearSlot> slots_;
  const LinearMap linears_;
  const Gate gate_, head_gate_;
  GpuStream stream_ = nullptr;
  CudaBertWeights weights_;
  mutable Mutex steps_;
  mutable PinnedBuffer pinned_ ABSL_GUARDED_BY(steps_);  // what goes up, then what comes down
};

absl::Status CudaBert::Load(const Checkpoint& checkpoint) {
  CudaDevice& device = backend_.device;
  ASSIGN_OR_RETURN(weights_, CudaBertWeights::Read(device, spec_, linears_, checkpoint));
  ASSIGN_OR_RETURN(stream_, device.runtime().CreateStream(device.index(), /*urgent=*/true));
  return absl::OkStatus();
}

EncodeMemory CudaBert::MemoryFor(const EncodeSizes& sizes) const {
  EncodeMemory at({.hidden = spec_.hidden,
                   .ffn = spec_.ffn,
                   .words = weights_.words->weight().k,
                   .out = static_cast<int>(EncoderColumns(spec_))},
                  sizes);
  for (const Layer& layer : weights_.layers) {
    for (const CudaLinear* linear :
         {layer.qkv, layer.attention_output, layer.intermediate, layer.output})
      at.Need(*linear, sizes.rows);
  }
  at.Close();
  return at;
}

size_t CudaBert::scratch_bytes(int64_t rows, int64_t logit_rows, int64_t) const {
  // A sequence per row of the result, and at most one per row; a tile more than full ones for each.
  const int64_t sequences = std::min(rows, std::max<int64_t>(logit_rows, 1));
  return MemoryFor({.rows = EvenRows(static_cast<int>(rows)),
                    .sequences = static_cast<int>(sequences),
                    .tiles = static_cast<int>(rows / kQueryTileRows + sequences)})
             .end +
         64;
}

absl::Status CudaBert::CheckArgs(const ForwardArgs& args) const {
  RETURN_IF_ERROR(CheckEncoderBatch(spec_, args));
  if (args.observer != nullptr || args.part != nullptr)
    return absl::UnimplementedError("a model on a GPU runs as a whole and shows no operands");
  return absl::OkStatus();
}

absl::Status CudaBert::Forward(const ForwardArgs& args, ComputeContext& context) const {
  CudaDevice& device = backend_.device;
  RETURN_IF_ERROR(device.health());
  RETURN_IF_ERROR(CheckArgs(args));
  if (args.batch.tokens.empty()) return absl::OkStatus();
  MutexLock step_lock(steps_);  // one stream, one step at a time
  RETURN_IF_ERROR(device.Use());
  const EncodeSizes sizes = EncodeSizesOf(args.batch);
  const EncodeMemory at = MemoryFor(sizes);
  const Arena::Scope scope(context.scratch);
  auto* const memory = context.scratch.TryAllocate<std::byte>(at.end);
  if (memory == nullptr)
    return absl::InternalError(absl::StrCat("scratch is too small: bytes=", at.end,
                                            " capacity=", context.scratch.capacity()));
  const Step step = {sizes, at, memory, at.ScratchIn(memory), {.stream = stream_}};
  const CudaRuntime& runtime = device.runtime();
  const size_t ints = EncodeLayout(sizes).end, up = ints * sizeof(int32_t);
  const size_t down = args.out.bytes();
  RETURN_IF_ERROR(Reserve(std::max(up, down)));
  FillEncodeBatch(args.batch, spec_.position_offset,
                  {reinterpret_cast<int32_t*>(pinned_.data()), ints});
  RETURN_IF_ERROR(device.Noted(runtime.Upload(pinned_.data(), memory + at.ints, up, stream_)));
  RETURN_IF_ERROR(Run(step));
  RETURN_IF_ERROR(device.Noted(runtime.Download(memory + at.out, pinned_.data(), down, stream_)));
  RETURN_IF_ERROR(device.Noted(runtime.Synchronize(stream_)));
  std::memcpy(args.out.data, pinned_.data(), down);
  return absl::OkStatus();
}

absl::Status CudaBert::Reserve(size_t bytes) const {
  if (pinned_.bytes() >= bytes) return absl::OkStatus();
  ASSIGN_OR_RETURN(pinned_, PinnedBuffer::Create(backend_.device.runtime(), 2 * bytes));
  return absl::OkStatus();
}

absl::Status CudaBert::Run(const Step& step) const {
  RETURN_IF_ERROR(backend_.device.runtime().Fill(step.memory + step.at.counters, 0,
                                                 step.at.counter_bytes, stream_));
  RETURN_IF_ERROR(Embed(step));
  RETURN_IF_ERROR(Norm(step, weights_.embedding_norm, NextOf(0)));
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    const Layer& layer = weights_.layers[i];
    RETURN_IF_ERROR(Attend(step, layer));
    RETURN_IF_ERROR(Mlp(step, layer));
    RETURN_IF_ERROR(Norm(step, layer.output_norm, NextOf(i + 1)));
  }
  return spec_.task == ModelTask::kClassify ? Classify(step) : Pool(step);
}

// stream = word + type + position
absl::Status CudaBert::Embed(const Step& step) const {
  const int rows = step.sizes.rows, stride = weights_.words->weight().k;
  const ExpandArgs words = {.w = weights_.words->weight(),
                            .out = step.memory + step.at.wide,
                            .rows = rows,
                            .out_stride = stride,
                            .float_out = true,
                            .pick = step.Ints(&EncodeLayout::tokens)};
  RETURN_IF_ERROR(Done(backend_.kernels.expand(words, step.context), "expand", rows));
  const EmbedArgs args = {.words = step.In<float>(step.at.wide),
                          .words_stride = stride,
                          .positions = step.Ints(&EncodeLayout::positions),
                          .types = step.Ints(&EncodeLayout::types),
                          .position_table = Floats(weights_.positions),
                          .type_table = Floats(weights_.types),
                          .rows = rows,
                          .width = spec_.hidden,
                          .stream = step.In<float>(step.at.stream)};
  return Done(ops_.embed(args, step.context), "embed", rows);
}

absl::Status CudaBert::Norm(const Step& step, const CudaBertWeights::Norm& norm,
                            const CudaLinear* next) const {
  const NormArgs args = {.stream = step.In<float>(step.at.stream),
                         .gain = Floats(norm.gain),
                         .bias = Floats(norm.bias),
                         .eps = spec_.norm_eps,
                         .rows = step.sizes.rows,
                         .width = spec_.hidden,
                         .form = next == nullptr ? RowForm::kHalf : next->input(step.sizes.rows),
                         .half = backend_.half,
                         .out = step.memory + step.at.normed,
                         .scales = step.In<float>(step.at.row_scales)};
  return Done(ops_.norm(args, step.context), "norm", args.rows);
}

absl::Status CudaBert::Product(const Step& step, const CudaLinear& linear, float* y,
                               bool accumulate) const {
  return linear.Run({.x = step.memory + step.at.normed,
                     .x_scales = step.In<float>(step.at.row_scales),
                     .rows = step.sizes.rows,
                     .y = y,
                     .accumulate = accumulate,
                     .scratch = step.scratch,
                     .context = step.context});
}

// stream = norm(stream + output(attention(stream)))
absl::Status CudaBert::Attend(const Step& step, const Layer& layer) const {
  const int rows = step.sizes.rows;
  RETURN_IF_ERROR(Product(step, *layer.qkv, step.In<float>(step.at.wide), false));
  const GateArgs round = {.x = step.In<float>(step.at.wide),
                          .rows = rows,
                          .width = 3 * spec_.hidden,
                          .gated = false,
                          .gate = Gate::kNone,
                          .half = backend_.half,
                          .out = step.memory + step.at.qkv};
  RETURN_IF_ERROR(Done(ops_.activate(round, step.context), "round", rows));
  // Attention writes where the next product reads, unless that wants codes.
  const RowForm form = layer.attention_output->input(rows);
  const bool codes = form != RowForm::kHalf;
  void* const attended = step.memory + (codes ? step.at.attended : step.at.normed);
  RETURN_IF_ERROR(Attention(step, attended));
  if (codes) RETURN_IF_ERROR(Quantize(step, attended, form));
  RETURN_IF_ERROR(Product(step, *layer.attention_output, step.In<float>(step.at.stream), true));
  return Norm(step, layer.attention_norm, layer.intermediate);
}

absl::Status CudaBert::Attention(const Step& step, void* attended) const {
  const auto* const qkv = step.In<uint16_t>(step.at.qkv);
  const int64_t stride = int64_t{3} * spec_.hidden;
  const EncoderAttentionArgs args = {
      .type = backend_.half,
      .q = {qkv, stride},
      .k = {qkv + spec_.hidden, stride},
      .v = {qkv + int64_t{2} * spec_.hidden, stride},
      .heads = spec_.heads,
      .kv_heads = spec_.heads,
      .head_dim = spec_.head_dim,
      .scale = 1.0f / std::sqrt(static_cast<float>(spec_.head_dim)),
      .tiles = reinterpret_cast<const QueryTile*>(step.Ints(&EncodeLayout::tiles)),
      .num_tiles = step.sizes.tiles,
      .lengths = step.Ints(&EncodeLayout::lengths),
      .y = attended};
  return Done(ops_.encoder_attention(args, step.context), "encoder_attention", step.sizes.rows);
}

// normed = codes of `attended` [rows, hidden] in 16 bit.
absl::Status CudaBert::Quantize(const Step& step, const void* attended, RowForm form) const {
  const QuantizeRowsArgs args = {
      .from = attended,
      .codes = step.In<uint8_t>(step.at.normed),
      .scales = step.In<float>(step.at.row_scales),
      .rows = step.sizes.rows,
      .k = spec_.hidden,
      .from_stride = spec_.hidden,
      .codes_stride = spec_.hidden,
      .number = backend_.half == Half::kF16 ? Number::kF16 : Number::kBf16,
      .to = form == RowForm::kE4M3 ? RowCodes::kFp8Token : RowCodes::kA8Token};
  return Done(backend_.kernels.quantize_rows(args, step.context), "quantize_rows", args.rows);
}

// stream += output(activation(intermediate(stream)))
absl::Status CudaBert::Mlp(const Step& step, const Layer& layer) const {
  const int rows = step.sizes.rows;
  RETURN_IF_ERROR(Product(step, *layer.intermediate, step.In<float>(step.at.wide), false));
  const GateArgs gate = {.x = step.In<float>(step.at.wide),
                         .rows = rows,
                         .width = spec_.ffn,
                         .gated = false,
                         .gate = gate_,
                         .form = layer.output->input(rows),
                         .half = backend_.half,
                         .out = step.memory + step.at.normed,
                         .scales = step.In<float>(step.at.row_scales)};
  RETURN_IF_ERROR(Done(ops_.activate(gate, step.context), "activate", rows));
  return Product(step, *layer.output, step.In<float>(step.at.stream), true);
}

absl::Status CudaBert::Pool(const Step& step) const {
  const PoolArgs args = {.stream = step.In<float>(step.at.stream),
                         .first_rows = step.Ints(&EncodeLayout::first_rows),
                         .lengths = step.Ints(&EncodeLayout::lengths),
                         .first = spec_.pooling == Pooling::kCls,
                         .normalize = spec_.normalize,
                         .sequences = step.sizes.sequences,
                         .width = spec_.hidden,
                         .out = step.In<float>(step.at.out)};
  return Done(ops_.pool(args, step.context), "pool", args.sequences);
}

// out = out(activation(dense(the first row of each)))
absl::Status CudaBert::Classify(const Step& step) const {
  const auto layer = [&](const CudaBertWeights::Dense& dense, DenseArgs args) {
    args.w = Floats(dense.w);
    args.bias = Floats(dense.bias);
    args.rows = step.sizes.sequences;
    args.n = dense.n;
    args.k = dense.k;
    return Done(ops_.dense(args, step.context), "dense", args.rows);
  };
  RETURN_IF_ERROR(layer(weights_.head[0], {.x = step.In<float>(step.at.stream),
                                           .pick = step.Ints(&EncodeLayout::first_rows),
                                           .gate = head_gate_,
                                           .y = step.In<float>(step.at.dense)}));
  return layer(weights_.head[1],
               {.x = step.In<float>(step.at.dense), .y = step.In<float>(step.at.out)});
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Model>> BuildCudaBert(const CudaBackend& backend,
                                                           const CudaOpsKernels& ops,
                                                           const ModelSpec& spec,
                                                           const Checkpoint& checkpoint,
                                                           LinearMap linears) {
  auto model = std::make_unique<CudaBert>(backend, ops, spec, std::move(linears));
  RETURN_IF_ERROR(model->Load(checkpoint));
  return std::unique_ptr<const Model>(std::move(model));
}

}  // namespace assay
