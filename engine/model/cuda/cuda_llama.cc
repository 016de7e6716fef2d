#include "engine/model/cuda/cuda_llama.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "engine/model/cuda/cuda_batch.h"
#include "engine/model/cuda/cuda_llama_weights.h"
#include "engine/model/cuda/cuda_weights.h"
#include "engine/model/cuda/step_candidates.h"
#include "engine/model/cuda/step_graphs.h"
#include "engine/model/cuda/step_memory.h"
#include "engine/model/families/forward_parts.h"
#include "engine/model/families/llama_spec.h"

namespace assay {
namespace {

using Layer = CudaLlamaWeights::Layer;

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
  absl::Status FetchLogits(std::span<const RowCandidates> candidates,
                           MutableView out) const override;
  size_t scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context_tokens) const override;
  size_t other_weight_bytes() const override { return weights_.other_bytes; }

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
  absl::Status CheckArgs(const ForwardArgs& args) const;
  StepMemory MemoryFor(const CudaStepSizes& sizes) const;

  absl::Status Reserve(size_t bytes) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(steps_);
  absl::Status Fetch(const Step& step, const ForwardArgs& args) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(steps_);
  absl::Status FetchRows(const Step& step, MutableView out, size_t first, size_t rows) const;
  absl::Status Fetch(const std::byte* from, void* to, size_t bytes) const;
  size_t RowBytes() const { return static_cast<size_t>(spec_.vocab) * sizeof(float); }
  absl::Status Run(const Step& step) const;
  absl::Status Captured(const Step& step) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(steps_);
  absl::Status Attend(const Step& step, int layer) const;
  // Of one layer: what it attends to, and where that goes.
  struct Heads {
    KvLayer kv;
    int window = 0;  // 0: everything
    void* y = nullptr;
  };
  absl::Status AttendDecode(const Step& step, const Heads& heads) const;
  absl::Status AttendPrefill(const Step& step, const Heads& heads) const;
  absl::Status Quantize(const Step& step, const void* attended, RowForm form) const;
  absl::Status Mlp(const Step& step, int layer) const;
  absl::Status Head(const Step& step) const;
  // normed = norm(stream), in the form that `next` takes.
  absl::Status Norm(const Step& step, const Buffer& gain, const CudaLinear& next) const;
  absl::Status Product(const Step& step, const CudaLinear& linear, int rows, float* y,
                       bool accumulate) const;
  KvLayer LayerOf(KvPool& kv, int layer) const;
  absl::Status Done(int error, const char* op, int rows) const {
    if (error == 0) return absl::OkStatus();
    return backend_.device.Noted(CudaStatus(error, absl::StrCat(op, " rows=", rows)));
  }

  const CudaBackend backend_;
  const CudaOpsKernels& ops_;
  const ModelSpec spec_;
  const std::vector<LinearSlot> slots_;
  const LinearMap linears_;
  const CudaModelOptions options_;
  const float scale_;  // of attention scores
  // Kernels for older devices do not wait for the one before.
  const bool pdl_ = options_.pdl && backend_.device.profile().compute >= 90;
  GpuStream stream_ = nullptr;
  CudaLlamaWeights weights_;
  mutable Mutex steps_;
  mutable std::map<CudaStepSizes, StepMemory> plans_ ABSL_GUARDED_BY(steps_);
  mutable PinnedBuffer pinned_ ABSL_GUARDED_BY(steps_);  // what goes up, then what comes down
  mutable StepGraphs graphs_ ABSL_GUARDED_BY(steps_){backend_.device};
};

CudaLlama::~CudaLlama() {
  const CudaRuntime& runtime = backend_.device.runtime();
  if (stream_ != nullptr) runtime.DestroyStream(stream_);
}

absl::Status CudaLlama::Load(const Checkpoint& checkpoint) {
  CudaDevice& device = backend_.device;
  ASSIGN_OR_RETURN(weights_, CudaLlamaWeights::Read(device, spec_, linears_, checkpoint));
  ASSIGN_OR_RETURN(stream_, device.runtime().CreateStream(device.index(), /*urgent=*/true));
  return absl::OkStatus();
}

StepMemory CudaLlama::MemoryFor(const CudaStepSizes& sizes) const {
  StepMemory at(LlamaWidths(spec_, options_), sizes);
  for (const Layer& layer : weights_.layers) {
    for (const CudaLinear* linear : {layer.qkv, layer.o, layer.gate_up, layer.down})
      at.Need(*linear, sizes.rows);
  }
  at.Need(*weights_.head, sizes.logit_rows);
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
  const auto even = [](int64_t of_rows) { return EvenRows(static_cast<int>(of_rows)); };
  return std::max(of(even(rows), rows, even(logit_rows), rows / kQueryTileRows + rows),
                  of(bucket, bucket, bucket, 0)) +
         64;
}

absl::Status CudaLlama::CheckArgs(const ForwardArgs& args) const {
  RETURN_IF_ERROR(CheckBatch(spec_, args.batch));
  constexpr size_t kMostRows = 65535;  // of a grid's third side
  if (args.batch.tokens.size() > kMostRows)
    return absl::InvalidArgumentError(absl::StrCat("a step on a GPU has at most ", kMostRows,
                                                   " rows: rows=", args.batch.tokens.size()));
  if (args.observer != nullptr || args.part != nullptr || args.head_input.data != nullptr)
    return absl::UnimplementedError("a model on a GPU runs as a whole and shows no operands");
  ASSIGN_OR_RETURN(const LayerPart part, PartOf(spec_, args));
  RETURN_IF_ERROR(CheckKv(spec_, args, part));
  const KvPool::Layout& layout = args.kv->layout();
  if (!layout.on_gpu || layout.keys != nullptr)
    return absl::UnimplementedError("a GPU's KV cache lies there, without calibrated keys");
  RETURN_IF_ERROR(CudaTakesKv({layout.dtype, layout.window, layout.sinks}));
  return CheckOut(args.out, static_cast<int64_t>(args.batch.logit_rows.size()), spec_.vocab);
}

absl::Status CudaLlama::Forward(const ForwardArgs& args, ComputeContext& context) const {
  RETURN_IF_ERROR(backend_.device.health());
  RETURN_IF_ERROR(CheckArgs(args));
  if (args.batch.tokens.empty()) return absl::OkStatus();
  MutexLock step_lock(steps_);  // one stream, one step at a time: a capture would take in another's
  RETURN_IF_ERROR(backend_.device.Use());
  const CudaStepSizes sizes = Bucketed(StepSizesOf(args.batch), options_.max_graph_rows);
  auto plan = plans_.find(sizes);
  if (plan == plans_.end()) plan = plans_.emplace(sizes, MemoryFor(sizes)).first;
  const StepMemory& at = plan->second;
  const Arena::Scope scope(context.scratch);
  auto* const memory = context.scratch.TryAllocate<std::byte>(at.end);
  if (memory == nullptr)
    return absl::InternalError(absl::StrCat("scratch is too small: bytes=", at.end,
                                            " capacity=", context.scratch.capacity()));
  const Step step = {
      sizes, at, memory, *args.kv, at.ScratchIn(memory), {.stream = stream_, .pdl = pdl_}};
  const CudaRuntime& runtime = backend_.device.runtime();
  const size_t count = CudaBatchLayout(sizes).end;
  const size_t down = sizeof(RowHead) + kMostCandidates * sizeof(RankedLogit);  // of a row
  RETURN_IF_ERROR(
      Reserve(std::max(count * sizeof(int32_t), down * static_cast<size_t>(sizes.logit_rows))));
  auto* const ints = reinterpret_cast<int32_t*>(pinned_.data());
  FillCudaBatch(args.batch, sizes, {ints, count});
  FillWanted(args.candidates, sizes, {ints, count});
  RETURN_IF_ERROR(backend_.device.Noted(
      runtime.Upload(ints, memory + at.ints, count * sizeof(int32_t), stream_)));
  const bool graph = sizes.tiles == 0 && sizes.rows <= options_.max_graph_rows;
  RETURN_IF_ERROR(graph ? Captured(step) : Run(step));
  return Fetch(step, args);
}

absl::Status CudaLlama::Reserve(size_t bytes) const {
  if (pinned_.bytes() >= bytes) return absl::OkStatus();
  ASSIGN_OR_RETURN(pinned_, PinnedBuffer::Create(backend_.device.runtime(), 2 * bytes));
  return absl::OkStatus();
}

// Logits of row `first` and those behind it, `rows` of them.
absl::Status CudaLlama::FetchRows(const Step& step, MutableView out, size_t first,
                                  size_t rows) const {
  return Fetch(step.memory + step.at.logits + first * RowBytes(), out.data + first * RowBytes(),
               rows * RowBytes());
}

// What comes of a step. Of rows whose candidates are enough, those alone: a row of logits is half a
// megabyte.
absl::Status CudaLlama::Fetch(const Step& step, const ForwardArgs& args) const {
  const std::span<RowCandidates> candidates = args.candidates;
  const size_t rows = args.batch.logit_rows.size();
  const auto wanted = [&](size_t row) {
    return !candidates.empty() && !candidates[row].room.empty();
  };
  for (size_t first = 0; first < rows;) {
    size_t end = first + 1;
    while (end < rows && wanted(end) == wanted(first)) ++end;
    if (!wanted(first)) RETURN_IF_ERROR(FetchRows(step, args.out, first, end - first));
    first = end;
  }
  const RowsWanted from_device = CountWanted(candidates);
  auto* const heads = reinterpret_cast<RowHead*>(pinned_.data());
  auto* const ranked = reinterpret_cast<RankedLogit*>(heads + rows);
  RETURN_IF_ERROR(Fetch(step.memory + step.at.heads, heads, from_device.heads * sizeof(RowHead)));
  RETURN_IF_ERROR(Fetch(step.memory + step.at.ranked, ranked,
                        from_device.ranked * kMostCandidates * sizeof(RankedLogit)));
  RETURN_IF_ERROR(backend_.device.Noted(backend_.device.runtime().Synchronize(stream_)));
  TakeCandidates({heads, ranked, step.In<float>(step.at.logits), spec_.vocab}, candidates);
  return absl::OkStatus();
}

absl::Status CudaLlama::Fetch(const std::byte* from, void* to, size_t bytes) const {
  if (bytes == 0) return absl::OkStatus();
  return backend_.device.Noted(backend_.device.runtime().Download(from, to, bytes, stream_));
}

absl::Status CudaLlama::FetchLogits(std::span<const RowCandidates> candidates,
                                    MutableView out) const {
  RETURN_IF_ERROR(backend_.device.health());
  RETURN_IF_ERROR(CheckOut(out, static_cast<int64_t>(candidates.size()), spec_.vocab));
  const MutexLock step_lock(steps_);
  RETURN_IF_ERROR(backend_.device.Use());
  for (size_t row = 0; row < candidates.size(); ++row) {
    if (!candidates[row].undecided) continue;
    if (candidates[row].logits == nullptr)
      return absl::InternalError(absl::StrCat("row ", row, " of logits is not on the device"));
    RETURN_IF_ERROR(Fetch(candidates[row].logits, out.data + row * RowBytes(), RowBytes()));
  }
  return backend_.device.Noted(backend_.device.runtime().Synchronize(stream_));
}

absl::Status CudaLlama::Captured(const Step& step) const {
  const StepGraphs::Key key(step.memory, step.kv.storage(), step.kv.num_blocks(),
                            step.kv.layout().dtype, step.sizes);
  return graphs_.Run(key, stream_, [&] { return Run(step); });
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
  const DType dtype = kv.layout().dtype;
  const KvCodes format = dtype == DType::kI8       ? KvCodes::kS8
                         : dtype == DType::kF8E4M3 ? KvCodes::kE4m3
                                                   : KvCodes::kHalf;
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
  if (step.at.counter_bytes > 0) {
    RETURN_IF_ERROR(backend_.device.Noted(
        runtime.Fill(step.memory + step.at.counters, 0, step.at.counter_bytes, stream_)));
  }
  const ExpandArgs embed = {.w = weights_.embedding->weight(),
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
                         .form = next.input(step.sizes.rows),
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
  const Layer& layer = weights_.layers[static_cast<size_t>(index)];
  const int rows = step.sizes.rows;
  // Attention writes where the next product reads, unless that wants codes.
  const RowForm form = layer.o->input(rows);
  const bool codes = form != RowForm::kHalf;
  void* const attended = step.memory + (codes ? step.at.attended : step.at.normed);
  const KvLayer kv = LayerOf(step.kv, index);
  RETURN_IF_ERROR(Norm(step, layer.input_norm, *layer.qkv));
  RETURN_IF_ERROR(Product(step, *layer.qkv, rows, step.In<float>(step.at.wide), false));
  const RopeAppendArgs rope = {.qkv = step.memory + step.at.wide,
                               .type = backend_.half,
                               .heads = spec_.heads,
                               .inv_freq = Floats(weights_.inv_freq),
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
  if (codes) RETURN_IF_ERROR(Quantize(step, attended, form));
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

// normed = codes of `attended` [rows, q] in 16 bit.
absl::Status CudaLlama::Quantize(const Step& step, const void* attended, RowForm form) const {
  const int width = spec_.heads * spec_.head_dim;
  const QuantizeRowsArgs args = {
      .from = attended,
      .codes = step.In<uint8_t>(step.at.normed),
      .scales = step.In<float>(step.at.row_scales),
      .rows = step.sizes.rows,
      .k = width,
      .from_stride = width,
      .codes_stride = width,
      .number = backend_.half == Half::kF16 ? Number::kF16 : Number::kBf16,
      .to = form == RowForm::kE4M3 ? RowCodes::kFp8Token : RowCodes::kA8Token};
  return Done(backend_.kernels.quantize_rows(args, step.context), "quantize_rows", args.rows);
}

// stream += down(silu(gate(norm(stream))) * up(norm(stream)))
absl::Status CudaLlama::Mlp(const Step& step, int index) const {
  const Layer& layer = weights_.layers[static_cast<size_t>(index)];
  const int rows = step.sizes.rows;
  RETURN_IF_ERROR(Norm(step, layer.post_attention_norm, *layer.gate_up));
  RETURN_IF_ERROR(Product(step, *layer.gate_up, rows, step.In<float>(step.at.wide), false));
  const GateArgs gate = {.x = step.In<float>(step.at.wide),
                         .rows = rows,
                         .width = spec_.ffn,
                         .form = layer.down->input(rows),
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
                         .gain = Floats(weights_.final_norm),
                         .eps = spec_.norm_eps,
                         .rows = rows,
                         .width = spec_.hidden,
                         .pick = step.In<int32_t>(step.at.ints) + ints.logit_rows,
                         .form = weights_.head->input(rows),
                         .half = backend_.half,
                         .out = step.memory + step.at.normed,
                         .scales = step.In<float>(step.at.row_scales)};
  RETURN_IF_ERROR(Done(ops_.norm(args, step.context), "norm", rows));
  RETURN_IF_ERROR(Product(step, *weights_.head, rows, step.In<float>(step.at.logits), false));
  const int32_t* const base = step.In<int32_t>(step.at.ints);
  const TopCandidatesArgs top = {.logits = step.In<float>(step.at.logits),
                                 .rows = rows,
                                 .vocab = spec_.vocab,
                                 .wanted = base + ints.wanted,
                                 .scales = reinterpret_cast<const float*>(base + ints.scales),
                                 .heads = step.In<RowHead>(step.at.heads),
                                 .ranked = step.In<RankedLogit>(step.at.ranked)};
  return Done(ops_.top_candidates(top, step.context), "top_candidates", rows);
}

}  // namespace

absl::Status CudaTakesKv(const KvFormat& format) {
  const bool known =
      format.dtype == DType::kF16 || format.dtype == DType::kI8 || format.dtype == DType::kF8E4M3;
  if (known && format.window + format.sinks == 0) return absl::OkStatus();
  return absl::UnimplementedError(absl::StrCat(
      "the KV cache on a GPU is f16 (the model's 16-bit type), i8 or f8_e4m3, without "
      "a window: kv=",
      std::string(Name(format.dtype)), " kv_window=", format.window, " kv_sinks=", format.sinks));
}

absl::StatusOr<std::unique_ptr<const Model>> BuildCudaLlama(
    const CudaBackend& backend, const CudaOpsKernels& ops, const ModelSpec& spec,
    const Checkpoint& checkpoint, LinearMap linears, const CudaModelOptions& options) {
  auto model = std::make_unique<CudaLlama>(backend, ops, spec, std::move(linears), options);
  RETURN_IF_ERROR(model->Load(checkpoint));
  return std::unique_ptr<const Model>(std::move(model));
}

}  // namespace assay
