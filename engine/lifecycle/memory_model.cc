#include "engine/lifecycle/memory_model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <tuple>

#include "engine/lifecycle/document_streams.h"
#include "engine/runtime/kv_cache.h"
#include "quant/activation.h"

namespace assay {
namespace {

constexpr int64_t kProbeRows = 128;          // whole blocks of every scheme
constexpr int64_t kProbeElements = 1 << 18;  // weights up to this size are packed whole
constexpr int kWarmRows = 256, kWarmBuckets = 64, kWarmTexts = 16;  // admission_stages.cc

// One kind of layer.
struct LayerCost {
  uint64_t packed = 0, stored = 0;
  const LinearKernel* kernel = nullptr;  // null: unknown
  LinearProblem problem;

  // For any number of rows up to `rows`, as forward_parts.h has it.
  uint64_t Scratch(int64_t rows) const {
    uint64_t most = 0;
    for (int64_t m = 1; kernel != nullptr && m < 2 * rows; m *= 2)
      most = std::max<uint64_t>(most, kernel->scratch_bytes(problem, std::min(m, rows)));
    return most + 64;
  }
};

absl::StatusOr<QuantizedTensor> ProbeWeight(const QuantScheme& scheme, ActivationMode activation,
                                            int64_t rows, int64_t k) {
  ASSIGN_OR_RETURN(Tensor weight, Tensor::Create(CpuDevice(), Shape{rows, k}, DType::kF32));
  for (int64_t i = 0; i < rows * k; ++i)
    weight.data<float>()[i] = 0.01f * static_cast<float>(i * 7 % 31 - 15);
  ASSIGN_OR_RETURN(QuantizedTensor codes, scheme.Encode(weight.view()));
  RETURN_IF_ERROR(WriteActivationParams({}, activation, codes));
  return codes;
}

absl::StatusOr<LayerCost> Probe(const std::string& scheme_name, ActivationMode activation,
                                const Shape& shape) {
  ASSIGN_OR_RETURN(const QuantScheme* scheme, FindScheme(scheme_name));
  RETURN_IF_ERROR(scheme->Accepts(shape));
  const int64_t rows =
      shape.elements() <= kProbeElements ? shape[0] : std::min(shape[0], kProbeRows);
  ASSIGN_OR_RETURN(const QuantizedTensor codes, ProbeWeight(*scheme, activation, rows, shape[1]));
  ASSIGN_OR_RETURN(const QuantizedLinear linear,
                   QuantizedLinear::Create(codes, Tensor(), {.activation = activation}));
  const double times = static_cast<double>(shape[0]) / static_cast<double>(rows);
  LayerCost cost{.packed = static_cast<uint64_t>(times * static_cast<double>(linear.bytes())),
                 .stored = static_cast<uint64_t>(times * static_cast<double>(codes.bytes())),
                 .problem = {shape, scheme, activation, DeviceKind::kCpu}};
  for (const LinearKernel* kernel : AllLinearKernels()) {
    if (kernel->name() == linear.kernel()) cost.kernel = kernel;
  }
  return cost;
}

uint64_t Matrix(int64_t rows, int64_t columns) {
  return static_cast<uint64_t>(rows * columns) * sizeof(float) + 64;
}

class MemoryModel {
 public:
  explicit MemoryModel(const MemoryInputs& inputs) : in_(inputs), spec_(inputs.spec) {
    for (const LinearSlot& slot : in_.slots) {
      const SlotPlan& plan = in_.plan.find(slot.name)->second;
      served_.push_back(&Cost(plan.scheme, plan.activation, slot.shape));
      exact_.push_back(&Cost("f32", ActivationMode::kA16, slot.shape));
      if (decoder() && IsHead(spec_, slot)) head_ = served_.size() - 1;
    }
  }

  MemoryEstimate Estimate() {
    MemoryEstimate e{.weights = in_.other_bytes};
    if (in_.on_gpu) return OnGpu();
    for (const LayerCost* cost : served_) e.weights += cost->packed;
    e.engine = Engine();
    const auto at = [&](const char* moment, uint64_t bytes) {
      if (bytes <= e.peak) return;
      e.peak = bytes;
      e.moment = moment;
    };
    at("reference", Reference());
    at("quantize", Quantize());
    at("verify", e.weights + Head() + Verify());
    if (in_.serves) at("warm", e.weights + Warm());
    if (in_.serves) at("serve", e.steady());
    return e;
  }

 private:
  bool decoder() const { return spec_.task == ModelTask::kGenerate; }

  // What the host holds beside a candidate on a GPU: one layer at a time, and what is compared.
  MemoryEstimate OnGpu() {
    MemoryEstimate e{.weights = in_.other_bytes};
    uint64_t quantize = 0;
    for (size_t i = 0; i < served_.size(); ++i) {
      e.weights += served_[i]->stored;
      const auto exact = static_cast<uint64_t>(in_.slots[i].shape.elements()) * 4;
      quantize =
          std::max(quantize, exact + served_[i]->stored + (in_.calibrated ? LayerBeside(i) : 0));
    }
    const uint64_t verify = Head() + Original() + Out(VerifyRows());
    e.peak = std::max({Reference(), quantize + Head(), verify});
    e.moment = e.peak == Reference() ? "reference" : e.peak == verify ? "verify" : "quantize";
    return e;
  }

  const LayerCost& Cost(const std::string& scheme, ActivationMode activation, const Shape& shape) {
    LayerCost& cost = costs_[{scheme, activation, shape[0], shape[1]}];
    if (cost.packed > 0) return cost;
    const absl::StatusOr<LayerCost> probed = Probe(scheme, activation, shape);
    cost = probed.ok() ? *probed : LayerCost{};
    if (!probed.ok()) cost.packed = cost.stored = static_cast<uint64_t>(shape.elements()) * 4;
    return cost;
  }

  // Scratch of a forward pass: Model::scratch_bytes of the families.
  uint64_t Pass(const std::vector<const LayerCost*>& linears, int64_t rows,
                int64_t out_rows) const {
    const int64_t h = spec_.hidden, f = spec_.ffn, q = int64_t{spec_.heads} * spec_.head_dim;
    const int64_t qkv =
        q + int64_t{2} * (decoder() ? spec_.kv_heads : spec_.heads) * spec_.head_dim;
    uint64_t most = 0;
    for (size_t i = 0; i < linears.size(); ++i) {
      const Shape& shape = in_.slots[i].shape;
      if (in_.slots[i].kind != LinearSlot::Kind::kLinear) continue;
      const bool mlp = shape[1] == f || shape[0] == f || shape[0] == 2 * f;
      const uint64_t inner = decoder() && mlp ? Matrix(rows, 2 * f) + Matrix(rows, f)
                             : mlp            ? Matrix(rows, f)
                                              : Matrix(rows, qkv) + Matrix(rows, q);
      most = std::max(most, inner + linears[i]->Scratch(rows));
    }
    if (decoder()) {
      const auto marks = static_cast<uint64_t>(out_rows) + 64;
      most = std::max(most, Matrix(out_rows, h) + marks +
                                linears[head_]->Scratch(std::max<int64_t>(1, out_rows)));
      most += static_cast<uint64_t>(rows) + 64 + 2 * Matrix(rows, spec_.head_dim / 2);
    }
    return most + 2 * Matrix(rows, h);
  }

  int64_t columns() const {
    return decoder()                            ? spec_.vocab
           : spec_.task == ModelTask::kClassify ? spec_.num_labels
                                                : spec_.hidden;
  }
  uint64_t Out(int64_t rows) const {
    return static_cast<uint64_t>(rows * columns()) * sizeof(float);
  }
  KvPool::Layout KvLayout(const KvFormat& format, int layers) const {
    return {.layers = layers,
            .kv_heads = spec_.kv_heads,
            .head_dim = spec_.head_dim,
            .dtype = format.dtype,
            .window = format.window,
            .sinks = format.sinks};
  }
  uint64_t Kv(const KvFormat& format, int layers, int64_t tokens, int64_t sequences) const {
    if (!decoder()) return 0;
    const KvPool::Layout layout = KvLayout(format, layers);
    return (layout.block_bytes() * static_cast<uint64_t>(KvCache::BlocksFor(tokens)) +
            layout.slot_bytes()) *
           static_cast<uint64_t>(sequences);
  }

  int Context() const {
    const int most = in_.engine.max_context;
    return most > 0 ? std::min(most, spec_.max_context) : spec_.max_context;
  }
  // The engines' own sums (engine/runtime).
  uint64_t Engine() const {
    const EngineOptions& o = in_.engine;
    if (!decoder())
      return Pass(served_, o.max_batch_tokens, o.max_sequences) + Out(o.max_sequences);
    int64_t sequences = std::min(o.max_sequences, o.max_step_tokens);
    const KvPool::Layout layout = KvLayout(o.kv_format, spec_.layers);
    uint64_t slots = 0;
    if (layout.has_slots()) {  // up to half of the pool
      const auto room = static_cast<int64_t>(o.kv_bytes / 2 / layout.slot_bytes());
      sequences = std::clamp<int64_t>(room, 1, sequences);
      slots = static_cast<uint64_t>(sequences) * layout.slot_bytes();
    }
    const uint64_t block = layout.block_bytes(), left = o.kv_bytes - std::min(slots, o.kv_bytes);
    const uint64_t useful = static_cast<uint64_t>(sequences * KvCache::BlocksFor(Context()));
    const uint64_t blocks = std::min<uint64_t>(useful, left / std::max<uint64_t>(1, block));
    return slots + blocks * block + Pass(served_, o.max_step_tokens, sequences) + Out(sequences);
  }

  // The longest document, in rows of a pass.
  int64_t Longest() const {
    const int wanted = decoder() ? in_.evaluation.window : in_.evaluation.sentence_tokens;
    return std::max(1, std::min(wanted, spec_.max_context));
  }
  int64_t VerifyRows() const {
    return decoder() ? std::min<int64_t>(kChunkRows, Longest()) : kEncoderSequences * Longest();
  }

  // What the verifier keeps: the head in f32.
  uint64_t Head() const {
    if (!decoder()) return 0;
    const uint64_t one = exact_[head_]->packed + exact_[head_]->Scratch(kChunkRows) - 64;
    return one * (in_.long_context ? 2 : 1);
  }
  // One layer and its pass.
  uint64_t Reference() const {
    uint64_t first = 0, other = 0;
    for (size_t i = 0; i < in_.slots.size(); ++i) {
      const bool table = in_.slots[i].kind == LinearSlot::Kind::kEmbedding;
      if (table || in_.slots[i].layer == 0) first += exact_[i]->packed;
      if (in_.slots[i].layer == spec_.layers - 1) other += exact_[i]->packed;
    }
    return std::max(first, other) + in_.other_bytes + Pass(exact_, VerifyRows(), 0) +
           Kv(DType::kF32, 1, Longest(), 1) + (decoder() ? 0 : Out(kEncoderSequences));
  }
  // What is done so far, and a slot in f32 and in codes.
  uint64_t Quantize() const {
    uint64_t done = 0, most = 0;
    const auto take = [&](size_t i, uint64_t beside) {
      const auto exact = static_cast<uint64_t>(in_.slots[i].shape.elements()) * 4;
      most = std::max(most, done + beside + exact + served_[i]->stored);
      done += served_[i]->packed;
    };
    for (size_t i = 0; i < in_.slots.size(); ++i) {
      if (!in_.calibrated || in_.slots[i].kind == LinearSlot::Kind::kLinear)
        take(i, in_.calibrated ? LayerBeside(i) : 0);
    }
    for (size_t i = 0; i < in_.slots.size(); ++i) {
      if (in_.calibrated && in_.slots[i].kind != LinearSlot::Kind::kLinear) take(i, 0);
    }
    return most + Head();
  }
  // In f32, while a slot of a calibrated layer is quantized: those of the layer that come after it.
  uint64_t LayerBeside(size_t slot) const {
    const int layer = in_.slots[slot].layer;
    uint64_t bytes = 0;
    for (size_t i = 0; i < in_.slots.size(); ++i) {
      const bool table = in_.slots[i].kind == LinearSlot::Kind::kEmbedding && layer == 0;
      if (table || (i > slot && in_.slots[i].layer == layer)) bytes += exact_[i]->packed;
    }
    return bytes;
  }
  // Besides candidate and head.
  uint64_t Original() const {
    uint64_t original = 0;
    for (size_t i = 0; i < in_.slots.size(); ++i) {
      if (decoder() && i == head_) continue;
      const auto exact = static_cast<uint64_t>(in_.slots[i].shape.elements()) * 4;
      original = std::max(original, exact + exact_[i]->packed);
    }
    return original;
  }
  uint64_t Verify() const {
    const uint64_t original = Original();
    const int64_t rows = VerifyRows(), out = decoder() ? rows : kEncoderSequences;
    const int64_t tokens =
        in_.long_context ? std::min(in_.evaluation.long_window, spec_.max_context) : Longest();
    const uint64_t compare =
        Pass(served_, rows, out) + Out(out) + Kv(in_.engine.kv_format, spec_.layers, tokens, 1);
    return std::max(original, compare);
  }
  uint64_t Warm() const {
    const EngineOptions& o = in_.engine;
    const int sequences =
        std::min(decoder() ? kWarmBuckets : kWarmTexts, decoder() ? o.max_sequences : kWarmTexts);
    const int step = std::min(decoder() ? o.max_step_tokens : o.max_batch_tokens,
                              std::max(spec_.max_context, 1));
    const int chunk = std::min(step, kWarmRows);
    // Two passes, one after the other.
    return std::max(
        Pass(served_, sequences, sequences) + Out(sequences) +
            Kv(o.kv_format.dtype, spec_.layers, 1, sequences),
        Pass(served_, chunk, 1) + Out(1) + Kv(o.kv_format.dtype, spec_.layers, chunk, 1));
  }

  const MemoryInputs& in_;
  const ModelSpec& spec_;
  std::map<std::tuple<std::string, ActivationMode, int64_t, int64_t>, LayerCost> costs_;
  std::vector<const LayerCost*> served_, exact_;  // by slot
  size_t head_ = 0;
};

}  // namespace

MemoryEstimate EstimateMemory(const MemoryInputs& inputs) { return MemoryModel(inputs).Estimate(); }

}  // namespace assay
