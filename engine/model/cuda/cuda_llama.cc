#include "engine/model/cuda/cuda_llama.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "engine/model/cuda/cuda_batch.h"
#include "engine/model/cuda/step_memory.h"
#include "engine/model/families/forward_parts.h"
#include "engine/model/families/llama_spec.h"
#include "engine/model/rotation.h"

namespace assay {
namespace {

struct Layer {
  Buffer input_norm, post_attention_norm;  // f32 [hidden]
  Buffer q_norm, k_norm;                   // f32 [head_dim], qwen3
  const CudaLinear *qkv = nullptr, *o = nullptr, *gate_up = nullptr, *down = nullptr;
};

const float* Floats(const Buffer& buffer) { return reinterpret_cast<const float*>(buffer.data()); }

class CudaLlama final : public Model {
 public:
  CudaLlama(const CudaBackend& backend, const CudaOpsKernels& ops, ModelSpec spec,
            LinearMap linears, const CudaModelOptions& options)
      : backend_(backend),
        ops_(ops),
        spec_(std::move(spec)),
        slots_(LlamaSlots(spec_)),
        linears_(std::move(linears)),
        options_(options),
        scale_(1.0f / std::sqrt(static_cast<float>(spec_.head_dim))) {}
  ~CudaLlama() override;
  absl::Status Load(const Checkpoint& checkpoint);

  const ModelSpec& spec() const override { return spec_; }
  const std::vector<LinearSlot>& slots() const override { return slots_; }
  const LinearMap& linears() const override { return linears_; }
  Device& device() const override { return backend_.device; }
  absl::Status Forward(const ForwardArgs& args, ComputeContext& context) const override;
  size_t scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context_tokens) const override;
  size_t other_weight_bytes() const override;

 private:
  // One step: what is launched, where it lies, for which batch.
  struct Step {
    CudaStepSizes sizes;
    const StepMemory& at;
    std::byte* memory;
    KvPool& kv;
    CudaScratch scratch;
    LaunchContext context;

    template <typename T>
    T* In(size_t offset) const {
      return reinterpret_cast<T*>(memory + offset);
    }
    DeviceBatch Batch() const;
  };
  absl::StatusOr<const CudaLinear*> Bound(const LinearSlot& slot) const;
  absl::StatusOr<Buffer> ReadVector(const Checkpoint& checkpoint, const std::string& name,
                                    int64_t width);
  absl::Status BindLinears();
  absl::Status ReadNorms(const Checkpoint& checkpoint);
  absl::Status CheckArgs(const ForwardArgs& args) const;
  StepWidths Widths() const;
  StepMemory MemoryFor(const CudaStepSizes& sizes) const;

  absl::Status Run(const Step& step) const;
  absl::Status Captured(const Step& step) const;
  absl::Status Attend(const Step& step, int layer) const;
  // Of one layer: what it attends to, and where that goes.
  struct Heads {
    KvLayer kv;
    int window = 0;  // 0: everything
    void* y = nullptr;
  };
  absl::Status AttendDecode(const Step& step, const Heads& heads) const;
  absl::Status AttendPrefill(const Step& step, const Heads& heads) const;
  absl::Status Quantize(const Step& step, const void* from, int width) const;
  absl::Status Mlp(const Step& step, int layer) const;
  absl::Status Head(const Step& step) const;
  // normed = norm(stream), in the form that `next` takes.
  absl::Status Norm(const Step& step, const Buffer& gain, const CudaLinear& next) const;
  absl::Status Product(const Step& step, const CudaLinear& linear, int rows, float* y,
                       bool accumulate) const;
  KvLayer LayerOf(KvPool& kv, int layer) const;
  absl::Status Done(int error, const char* op, int rows) const {
    return backend_.device.Noted(CudaStatus(error, absl::StrCat(op, " rows=", rows)));
  }

  const CudaBackend backend_;
  const CudaOpsKernels& ops_;
  const ModelSpec spec_;
  const std::vector<LinearSlot> slots_;
  const LinearMap linears_;
  const CudaModelOptions options_;
  const float scale_;  // of attention scores
  GpuStream stream_ = nullptr;
  const CudaLinear *embedding_ = nullptr, *head_ = nullptr;
  std::vector<Layer> layers_;
  Buffer final_norm_, inv_freq_;
  // Of one arena, one pool and one size each.
  using GraphKey = std::tuple<const std::byte*, const std::byte*, CudaStepSizes>;
  mutable Mutex mu_;
  mutable std::map<GraphKey, GpuGraph> graphs_ ABSL_GUARDED_BY(mu_);
};

CudaLlama::~CudaLlama() {
  const CudaRuntime& runtime = backend_.device.runtime();
  MutexLock lock(mu_);
  for (const auto& [key, graph] : graphs_) runtime.DestroyGraph(graph);
  if (stream_ != nullptr) runtime.DestroyStream(stream_);
}

absl::StatusOr<const CudaLinear*> CudaLlama::Bound(const LinearSlot& slot) const {
  ASSIGN_OR_RETURN(const BoundLinear bound, Bind(slot, linears_));
  const QuantizedLinear& linear = *bound.linear;
  if (linear.problem().device != DeviceKind::kCuda || linear.rotates_input() ||
      linear.low_rank() > 0 || linear.keys() != nullptr) {
    return absl::UnimplementedError(absl::StrCat(
        "on a GPU inputs are not rotated, and there are no low-rank branches or calibrated keys: ",
        slot.name));
  }
  return static_cast<const CudaLinear*>(&linear.weight());
}

absl::Status CudaLlama::BindLinears() {
  ASSIGN_OR_RETURN(embedding_, Bound(slots_.front()));
  head_ = embedding_;
  if (!spec_.tied_head) {
    ASSIGN_OR_RETURN(head_, Bound(slots_.back()));
  }
  layers_.resize(static_cast<size_t>(spec_.layers));
  for (size_t i = 0; i < layers_.size(); ++i) {
    const LinearSlot* slot = &slots_[1 + 4 * i];
    for (const CudaLinear** to :
         {&layers_[i].qkv, &layers_[i].o, &layers_[i].gate_up, &layers_[i].down}) {
      ASSIGN_OR_RETURN(*to, Bound(*slot++));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Buffer> CudaLlama::ReadVector(const Checkpoint& checkpoint, const std::string& name,
                                             int64_t width) {
  ASSIGN_OR_RETURN(const Tensor read, ReadTensor(checkpoint, name, Shape{width}));
  ASSIGN_OR_RETURN(Buffer buffer, backend_.device.Allocate(read.bytes()));
  RETURN_IF_ERROR(backend_.device.Upload({read.data<std::byte>(), read.bytes()}, buffer));
  return buffer;
}

absl::Status CudaLlama::ReadNorms(const Checkpoint& checkpoint) {
  ASSIGN_OR_RETURN(final_norm_, ReadVector(checkpoint, "model.norm.weight", spec_.hidden));
  for (int i = 0; i < spec_.layers; ++i) {
    const std::string prefix = LlamaLayerPrefix(i);
    Layer& layer = layers_[static_cast<size_t>(i)];
    ASSIGN_OR_RETURN(layer.input_norm,
                     ReadVector(checkpoint, prefix + "input_layernorm.weight", spec_.hidden));
    ASSIGN_OR_RETURN(
        layer.post_attention_norm,
        ReadVector(checkpoint, prefix + "post_attention_layernorm.weight", spec_.hidden));
    if (!spec_.qk_norm) continue;
    ASSIGN_OR_RETURN(layer.q_norm,
                     ReadVector(checkpoint, prefix + "self_attn.q_norm.weight", spec_.head_dim));
    ASSIGN_OR_RETURN(layer.k_norm,
                     ReadVector(checkpoint, prefix + "self_attn.k_norm.weight", spec_.head_dim));
  }
  return absl::OkStatus();
}

absl::Status CudaLlama::Load(const Checkpoint& checkpoint) {
  if (checkpoint.Find(kStreamRotation).ok())
    return absl::UnimplementedError("a rotated residual stream is not served on a GPU");
  if (spec_.hidden % 32 != 0 || spec_.ffn % 4 != 0)
    return absl::UnimplementedError(absl::StrCat(
        "on a GPU hidden_size is a multiple of 32 and intermediate_size of 4: ", spec_.hidden, ", ",
        spec_.ffn));
  RETURN_IF_ERROR(BindLinears());
  RETURN_IF_ERROR(ReadNorms(checkpoint));
  const std::span<const std::byte> frequencies = std::as_bytes(std::span(spec_.rope_inv_freq));
  ASSIGN_OR_RETURN(inv_freq_, backend_.device.Allocate(frequencies.size()));
  RETURN_IF_ERROR(backend_.device.Upload(frequencies, inv_freq_));
  ASSIGN_OR_RETURN(stream_, backend_.device.runtime().CreateStream(backend_.device.index(), true));
  return absl::OkStatus();
}

StepWidths CudaLlama::Widths() const {
  return {.hidden = spec_.hidden,
          .q = spec_.heads * spec_.head_dim,
          .kv = spec_.kv_heads * spec_.head_dim,
          .ffn = spec_.ffn,
          .vocab = spec_.vocab,
          .heads = spec_.heads,
          .kv_heads = spec_.kv_heads,
          .splits = options_.decode_splits};
}

StepMemory CudaLlama::MemoryFor(const CudaStepSizes& sizes) const {
  StepMemory at(Widths(), sizes);
  const auto add = [&](const CudaLinear& linear, int rows) {
    at.Need({linear.expanded_bytes(rows), linear.padded_bytes(rows), linear.partial_floats(rows),
             linear.counters(rows)});
  };
  for (const Layer& layer : layers_) {
    for (const CudaLinear* linear : {layer.qkv, layer.o, layer.gate_up, layer.down})
      add(*linear, sizes.rows);
  }
  add(*head_, sizes.logit_rows);
  at.Close();
  return at;
}

size_t CudaLlama::scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context_tokens) const {
  const int blocks = TableWidth((context_tokens + kKvBlockTokens - 1) / kKvBlockTokens);
  const auto of = [&](int64_t step_rows, int64_t sequences, int64_t logits, int64_t tiles) {
    return MemoryFor({.rows = static_cast<int>(step_rows),
                      .sequences = static_cast<int>(sequences),
                      .logit_rows = static_cast<int>(logits),
                      .max_blocks = blocks,
                      .tiles = static_cast<int>(tiles),
                      .decode = true})
        .end;
  };
  // At most as many sequences as rows; prefill tiles: one per sequence and one per 64 rows. Decode
  // steps are rounded up to their bucket.
  const int decode_rows = static_cast<int>(std::min<int64_t>(rows, options_.max_graph_rows));
  const int bucket = Bucketed({.rows = decode_rows, .decode = true}, options_.max_graph_rows).rows;
  return std::max(of(rows, rows, logit_rows, rows / kQueryTileRows + rows),
                  of(bucket, bucket, bucket, 0)) +
         64;
}

size_t CudaLlama::other_weight_bytes() const {
  size_t bytes = final_norm_.bytes() + inv_freq_.bytes();
  for (const Layer& layer : layers_) {
    bytes += layer.input_norm.bytes() + layer.post_attention_norm.bytes() + layer.q_norm.bytes() +
             layer.k_norm.bytes();
  }
  return bytes;
}

absl::Status CudaLlama::CheckArgs(const ForwardArgs& args) const {
  RETURN_IF_ERROR(CheckBatch(spec_, args.batch));
  if (args.observer != nullptr || args.part != nullptr || args.head_input.data != nullptr)
    return absl::UnimplementedError("a model on a GPU runs as a whole and shows no operands");
  ASSIGN_OR_RETURN(const LayerPart part, PartOf(spec_, args));
  RETURN_IF_ERROR(CheckKv(spec_, args, part));
  const KvPool::Layout& layout = args.kv->layout();
  const bool known = layout.dtype == DType::kF16 || layout.dtype == DType::kI8;
  if (!layout.on_gpu || !known || layout.has_slots() || layout.keys != nullptr) {
    return absl::UnimplementedError(
        absl::StrCat("a GPU's KV cache has rows of 16 bit or of i8, without calibrated keys or a "
                     "window: dtype=",
                     std::string(Name(layout.dtype))));
  }
  return CheckOut(args.out, static_cast<int64_t>(args.batch.logit_rows.size()), spec_.vocab);
}

absl::Status CudaLlama::Forward(const ForwardArgs& args, ComputeContext& context) const {
  RETURN_IF_ERROR(backend_.device.health());
  RETURN_IF_ERROR(CheckArgs(args));
  if (args.batch.tokens.empty()) return absl::OkStatus();
  const CudaStepSizes exact = StepSizesOf(args.batch);
  const CudaStepSizes sizes = Bucketed(exact, options_.max_graph_rows);
  const StepMemory at = MemoryFor(sizes);
  const Arena::Scope scope(context.scratch);
  auto* const memory = context.scratch.TryAllocate<std::byte>(at.end);
  if (memory == nullptr)
    return absl::InternalError(absl::StrCat("scratch is too small: bytes=", at.end,
                                            " capacity=", context.scratch.capacity()));
  const Step step = {sizes, at, memory, *args.kv, at.ScratchIn(memory), {.stream = stream_}};
  const CudaRuntime& runtime = backend_.device.runtime();
  std::vector<int32_t> ints(CudaBatchLayout(sizes).end);
  FillCudaBatch(args.batch, sizes, ints);
  RETURN_IF_ERROR(backend_.device.Noted(
      runtime.Upload(ints.data(), memory + at.ints, ints.size() * sizeof(int32_t), stream_)));
  const bool graph = sizes.tiles == 0 && sizes.rows <= options_.max_graph_rows;
  RETURN_IF_ERROR(graph ? Captured(step) : Run(step));
  const size_t logits = args.batch.logit_rows.size() * static_cast<size_t>(spec_.vocab);
  if (logits > 0)
    RETURN_IF_ERROR(backend_.device.Noted(
        runtime.Download(memory + at.logits, args.out.data, logits * sizeof(float), stream_)));
  return backend_.device.Noted(runtime.Synchronize(stream_));
}

// The first step of a size runs as it is (kernels load lazily), the second is captured.
absl::Status CudaLlama::Captured(const Step& step) const {
  const CudaRuntime& runtime = backend_.device.runtime();
  const GraphKey key(step.memory, step.kv.storage(), step.sizes);
  {
    MutexLock lock(mu_);
    const auto [entry, added] = graphs_.try_emplace(key, nullptr);
    if (entry->second != nullptr)
      return backend_.device.Noted(runtime.Launch(entry->second, stream_));
    if (added) return Run(step);
  }
  RETURN_IF_ERROR(runtime.BeginCapture(stream_));
  const absl::Status run = Run(step);
  absl::StatusOr<GpuGraph> graph = runtime.EndCapture(stream_);
  RETURN_IF_ERROR(run);
  RETURN_IF_ERROR(graph.status());
  {
    MutexLock lock(mu_);
    graphs_[key] = *graph;
  }
  return backend_.device.Noted(runtime.Launch(*graph, stream_));
}

DeviceBatch CudaLlama::Step::Batch() const {
  const CudaBatchLayout ints(sizes);
  const int32_t* const base = In<int32_t>(at.ints);
  return {.tokens = base + ints.tokens,
          .positions = base + ints.positions,
          .sequence_of_row = base + ints.sequence_of_row,
          .block_tables = base + ints.block_tables,
          .rows = sizes.rows,
          .max_blocks = sizes.max_blocks};
}

KvLayer CudaLlama::LayerOf(KvPool& kv, int layer) const {
  const KvCodes format = kv.layout().dtype == DType::kI8 ? KvCodes::kS8 : KvCodes::kHalf;
  const size_t codes = KvCodesBytes(format, kv.num_blocks(), spec_.kv_heads, spec_.head_dim);
  const size_t scales = KvScalesBytes(format, kv.num_blocks(), spec_.kv_heads);
  std::byte* const of_layer = kv.storage() + static_cast<size_t>(layer) * (codes + scales);
  return {.codes = of_layer,
          .scales = scales == 0 ? nullptr : reinterpret_cast<float*>(of_layer + codes),
          .format = format,
          .kv_heads = spec_.kv_heads,
          .head_dim = spec_.head_dim};
}

absl::Status CudaLlama::Run(const Step& step) const {
  const CudaRuntime& runtime = backend_.device.runtime();
  const int rows = step.sizes.rows;
  RETURN_IF_ERROR(runtime.Fill(step.memory + step.at.counters, 0, step.at.counter_bytes, stream_));
  const ExpandArgs embed = {.w = embedding_->weight(),
                            .out = step.memory + step.at.stream,
                            .rows = rows,
                            .out_stride = spec_.hidden,
                            .float_out = true,
                            .pick = step.Batch().tokens};
  RETURN_IF_ERROR(Done(backend_.kernels.expand(embed, step.context), "embed", rows));
  for (int i = 0; i < spec_.layers; ++i) {
    RETURN_IF_ERROR(Attend(step, i));
    RETURN_IF_ERROR(Mlp(step, i));
  }
  return Head(step);
}

absl::Status CudaLlama::Norm(const Step& step, const Buffer& gain, const CudaLinear& next) const {
  const NormArgs args = {.stream = step.In<float>(step.at.stream),
                         .gain = Floats(gain),
                         .eps = spec_.norm_eps,
                         .rows = step.sizes.rows,
                         .width = spec_.hidden,
                         .form = next.input(),
                         .half = backend_.half,
                         .out = step.memory + step.at.normed,
                         .scales = step.In<float>(step.at.row_scales)};
  return Done(ops_.norm(args, step.context), "norm", args.rows);
}

absl::Status CudaLlama::Product(const Step& step, const CudaLinear& linear, int rows, float* y,
                                bool accumulate) const {
  return linear.Run({.x = step.memory + step.at.normed,
                     .x_scales = step.In<float>(step.at.row_scales),
                     .rows = rows,
                     .y = y,
                     .accumulate = accumulate,
                     .scratch = step.scratch,
                     .context = step.context});
}

// stream += o(attention(norm(stream)))
absl::Status CudaLlama::Attend(const Step& step, int index) const {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const int rows = step.sizes.rows;
  // Attention writes where the next product reads, unless that wants codes.
  const bool codes = layer.o->input() != RowForm::kHalf;
  void* const attended = step.memory + (codes ? step.at.attended : step.at.normed);
  const KvLayer kv = LayerOf(step.kv, index);
  RETURN_IF_ERROR(Norm(step, layer.input_norm, *layer.qkv));
  RETURN_IF_ERROR(Product(step, *layer.qkv, rows, step.In<float>(step.at.wide), false));
  const RopeAppendArgs rope = {.qkv = step.memory + step.at.wide,
                               .type = backend_.half,
                               .heads = spec_.heads,
                               .inv_freq = Floats(inv_freq_),
                               .attention_scale = spec_.rope_attention_scale,
                               .q_gain = Floats(layer.q_norm),
                               .k_gain = Floats(layer.k_norm),
                               .eps = spec_.norm_eps,
                               .batch = step.Batch(),
                               .kv = kv,
                               .q = step.memory + step.at.q};
  RETURN_IF_ERROR(Done(ops_.rope_append(rope, step.context), "rope_append", rows));
  const Heads heads = {kv, index >= spec_.window_first_layer ? spec_.sliding_window : 0, attended};
  if (step.sizes.decode) RETURN_IF_ERROR(AttendDecode(step, heads));
  if (step.sizes.tiles > 0) RETURN_IF_ERROR(AttendPrefill(step, heads));
  if (codes) RETURN_IF_ERROR(Quantize(step, attended, spec_.heads * spec_.head_dim));
  return Product(step, *layer.o, rows, step.In<float>(step.at.stream), true);
}

absl::Status CudaLlama::AttendDecode(const Step& step, const Heads& heads) const {
  DecodeAttentionArgs args = {.type = backend_.half,
                              .q = step.memory + step.at.q,
                              .heads = spec_.heads,
                              .scale = scale_,
                              .sliding_window = heads.window,
                              .batch = step.Batch(),
                              .kv = heads.kv,
                              .splits = options_.decode_splits,
                              .workspace = step.In<float>(step.at.attention_partial),
                              .arrived = step.In<int>(step.at.arrived),
                              .y = heads.y};
  args.batch.positions =
      step.In<int32_t>(step.at.ints) + CudaBatchLayout(step.sizes).decode_positions;
  return Done(ops_.decode_attention(args, step.context), "decode_attention", step.sizes.rows);
}

absl::Status CudaLlama::AttendPrefill(const Step& step, const Heads& heads) const {
  const int32_t* const tiles = step.In<int32_t>(step.at.ints) + CudaBatchLayout(step.sizes).tiles;
  const PrefillAttentionArgs args = {.type = backend_.half,
                                     .q = step.memory + step.at.q,
                                     .heads = spec_.heads,
                                     .scale = scale_,
                                     .sliding_window = heads.window,
                                     .tiles = reinterpret_cast<const QueryTile*>(tiles),
                                     .num_tiles = step.sizes.tiles,
                                     .block_tables = step.Batch().block_tables,
                                     .max_blocks = step.sizes.max_blocks,
                                     .kv = heads.kv,
                                     .y = heads.y};
  return Done(ops_.prefill_attention(args, step.context), "prefill_attention", step.sizes.rows);
}

// normed = codes of `from` [rows, width] in 16 bit.
absl::Status CudaLlama::Quantize(const Step& step, const void* from, int width) const {
  const QuantizeRowsArgs args = {
      .from = from,
      .codes = step.In<uint8_t>(step.at.normed),
      .scales = step.In<float>(step.at.row_scales),
      .rows = step.sizes.rows,
      .k = width,
      .from_stride = width,
      .codes_stride = width,
      .number = backend_.half == Half::kF16 ? Number::kF16 : Number::kBf16,
      .to = RowCodes::kA8Token};
  return Done(backend_.kernels.quantize_rows(args, step.context), "quantize_rows", args.rows);
}

// stream += down(silu(gate(norm(stream))) * up(norm(stream)))
absl::Status CudaLlama::Mlp(const Step& step, int index) const {
  const Layer& layer = layers_[static_cast<size_t>(index)];
  const int rows = step.sizes.rows;
  RETURN_IF_ERROR(Norm(step, layer.post_attention_norm, *layer.gate_up));
  RETURN_IF_ERROR(Product(step, *layer.gate_up, rows, step.In<float>(step.at.wide), false));
  const GateArgs gate = {.x = step.In<float>(step.at.wide),
                         .rows = rows,
                         .width = spec_.ffn,
                         .form = layer.down->input(),
                         .half = backend_.half,
                         .out = step.memory + step.at.normed,
                         .scales = step.In<float>(step.at.row_scales)};
  RETURN_IF_ERROR(Done(ops_.activate(gate, step.context), "activate", rows));
  return Product(step, *layer.down, rows, step.In<float>(step.at.stream), true);
}

absl::Status CudaLlama::Head(const Step& step) const {
  const int rows = step.sizes.logit_rows;
  if (rows == 0) return absl::OkStatus();
  const CudaBatchLayout ints(step.sizes);
  const NormArgs args = {.stream = step.In<float>(step.at.stream),
                         .gain = Floats(final_norm_),
                         .eps = spec_.norm_eps,
                         .rows = rows,
                         .width = spec_.hidden,
                         .pick = step.In<int32_t>(step.at.ints) + ints.logit_rows,
                         .form = head_->input(),
                         .half = backend_.half,
                         .out = step.memory + step.at.normed,
                         .scales = step.In<float>(step.at.row_scales)};
  RETURN_IF_ERROR(Done(ops_.norm(args, step.context), "norm", rows));
  return Product(step, *head_, rows, step.In<float>(step.at.logits), false);
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Model>> BuildCudaLlama(
    const CudaBackend& backend, const CudaOpsKernels& ops, const ModelSpec& spec,
    const Checkpoint& checkpoint, LinearMap linears, const CudaModelOptions& options) {
  auto model = std::make_unique<CudaLlama>(backend, ops, spec, std::move(linears), options);
  RETURN_IF_ERROR(model->Load(checkpoint));
  return std::unique_ptr<const Model>(std::move(model));
}

}  // namespace assay
