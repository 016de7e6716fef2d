// Models: what a checkpoint becomes. Immutable once built; Forward is const and thread-safe given
// distinct contexts.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/checkpoint.h"
#include "engine/model/fold.h"
#include "engine/ops/batch.h"
#include "engine/ops/candidates.h"
#include "engine/ops/kv_pool.h"
#include "quant/linear.h"

namespace assay {

enum class ModelTask { kGenerate, kEmbed, kClassify };
enum class Pooling { kMean, kCls };

// Parsed once from Checkpoint::config(), then constant. Fields that a family does not use keep
// their defaults.
struct ModelSpec {
  std::string family;        // row of AllFamilies(): "llama", "bert"
  std::string architecture;  // the checkpoint's own word: "qwen2", "distilbert", ...
  ModelTask task = ModelTask::kGenerate;
  int layers = 0, hidden = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0, vocab = 0,
      max_context = 0;
  float norm_eps = 1e-5f;
  bool tied_head = false;
  // llama
  float rope_theta = 10000.0f;
  std::vector<float> rope_inv_freq;   // [head_dim / 2], scaling applied (linear, llama3, yarn, or
                                      // per-frequency factors)
  float rope_attention_scale = 1.0f;  // yarn's factor on cos and sin
  int sliding_window = 0;             // 0 = none
  int window_first_layer = 0;         // layers before it see everything
  bool qk_norm = false, qkv_bias = false, o_bias = false, mlp_bias = false;
  // bert
  std::string tensor_prefix;  // of the encoder's tensors in the checkpoint: "", "bert.", ...
  Pooling pooling = Pooling::kMean;
  bool normalize = false;  // L2 norm of the embedding
  int num_labels = 0;
  std::vector<std::string> labels;
  std::string activation = "silu";
  int position_offset = 0;  // RoBERTa counts positions from padding_idx + 1
  int type_vocab = 0;
};

// One multiplication of the model: one or more checkpoint weights with a common input, stacked
// along n. It is the unit of planning: all parts share scheme, activation mode and kernel, and fall
// back together.
struct LinearSlot {
  enum class Kind { kEmbedding, kLinear, kHead };
  std::string name;                  // "model.layers.0.self_attn.qkv_proj"
  std::vector<std::string> weights;  // checkpoint tensors, top to bottom: {"...q_proj.weight", ...}
  std::vector<std::string> biases;   // empty, or one per weight ("" = that part has none)
  Shape shape;                       // [n, k]
  Kind kind = Kind::kLinear;
  int layer = -1;  // -1 outside the stack
};
// Slot name -> linear. Shared, because the reference and several candidates use the same unchanged
// layers.
//
// A null pointer in a map: that slot's layer is not there. A model of such a map runs passes over
// parts of the stack that it has.
using LinearMap = std::map<std::string, std::shared_ptr<const QuantizedLinear>, std::less<>>;

// Sees the operands of every linear layer of a forward pass (calibration, per-layer verification).
// Called on the thread that runs Forward; views die with the call.
using LinearObserver = std::function<void(const LinearSlot& slot, TensorView x, TensorView y)>;

// A part of the stack, for passes that walk it layer by layer (engine/lifecycle/calibrate.h).
struct LayerPart {
  int first = 0, end = 0;  // layers [first, end); what lies above them runs when end = layers
  // [rows, hidden] f32: what flows between layers. Read when first > 0 (the embedding is then left
  // out), written after layer end - 1; empty = not kept.
  MutableView stream;
};

// A row of logits of which the first tokens of the ranking are wanted, and sums over all of it, in
// place of the row (engine/ops/candidates.h): a model on a GPU finds them there, and leaves the
// row's logits where they are. One that does not gives the row.
struct RowCandidates {
  // Room for those that are wanted: for one or for kMostCandidates; empty: the row itself is
  // wanted.
  std::span<RankedLogit> room;
  float scale = 1;  // of sums.scaled

  // As many as there is room for, and no more than the vocabulary has. 0: none.
  size_t count = 0;
  LogitSums sums;
  const std::byte* logits = nullptr;  // where the row lies on the device: for FetchLogits
  // The row is wanted after all, by FetchLogits: the model says so where the sampler would refuse
  // it (NaN), the caller where candidates decide nothing.
  bool undecided = false;

  std::span<const RankedLogit> ranked() const { return room.first(count); }
};

struct ForwardArgs {
  const ForwardBatch& batch;
  KvPool* kv = nullptr;  // decoders; same layers, heads and head_dim as the spec
  MutableView out;       // decoders [logit_rows, vocab]; encoders [sequences, hidden or num_labels]
  const LinearObserver* observer = nullptr;
  const LayerPart* part = nullptr;  // null = everything
  // Decoders: [logit_rows, hidden], or empty. What the output head would be multiplied by is
  // written here, and the head is left out.
  MutableView head_input;
  std::span<RowCandidates> candidates = {};  // decoders: [logit_rows] with count 0, or empty
};

class Model {
 public:
  virtual ~Model() = default;
  virtual const ModelSpec& spec() const = 0;
  virtual const std::vector<LinearSlot>& slots() const = 0;
  virtual const LinearMap& linears() const = 0;
  // InvalidArgument: a token id outside the vocabulary, a position beyond max_context, a part that
  // is none or whose stream has another shape; FailedPrecondition: a part that this model lacks;
  // Internal: scratch too small.
  virtual absl::Status Forward(const ForwardArgs& args, ComputeContext& context) const = 0;
  // The rows of `candidates` that are undecided into their places in `out`, both as Forward had
  // them, before anybody else uses that Forward's scratch. Internal: no candidates were given.
  virtual absl::Status FetchLogits(std::span<const RowCandidates> candidates,
                                   MutableView out) const;
  // Scratch that Forward needs for batches of up to this size.
  virtual size_t scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context_tokens) const = 0;
  // Where it runs: KV pool and scratch lie there. What Forward takes and gives is host memory.
  virtual Device& device() const { return CpuDevice(); }
  virtual size_t other_weight_bytes() const = 0;  // norms, position tables, biases outside linears
  // With what the linears say of keys, where the format has integer codes.
  KvPool::Layout kv_layout(const KvFormat& format) const;
};

struct ModelFamily {  // one row per architecture family in engine/model/family_list.cc
  std::string_view name;
  bool (*matches)(const Checkpoint&);  // by config()["model_type"] / ["architectures"]
  absl::StatusOr<ModelSpec> (*parse)(const Checkpoint&);  // InvalidArgument names the key
  std::vector<LinearSlot> (*slots)(const ModelSpec&);
  // Where channels may be rescaled without changing the function (engine/model/fold.h), in the
  // order of the layers.
  std::vector<FoldGroup> (*folds)(const ModelSpec&);
  // `linears` names every slot. Reads norms, position tables, ... from the checkpoint; keeps no
  // reference to it.
  absl::StatusOr<std::unique_ptr<const Model>> (*build)(const ModelSpec&, const Checkpoint&,
                                                        LinearMap linears);
};
std::span<const ModelFamily> AllFamilies();
// Unimplemented with the model_type and what is supported.
absl::StatusOr<const ModelFamily*> FamilyOf(const Checkpoint& checkpoint);

// Weight of one slot, parts stacked, as f32 [n, k]; and its bias [n], empty when the slot has none.
// NotFound, DataLoss and InvalidArgument (shape differs from the slot's: both are named).
absl::StatusOr<Tensor> ReadSlotWeight(const Checkpoint& checkpoint, const LinearSlot& slot);
absl::StatusOr<Tensor> ReadSlotBias(const Checkpoint& checkpoint, const LinearSlot& slot);

// The whole model with every slot in one scheme: the reference (scheme "f32"), and what tests use.
absl::StatusOr<std::unique_ptr<const Model>> BuildUniform(const Checkpoint& checkpoint,
                                                          std::string_view scheme,
                                                          const LinearOptions& options);

// Slots in f32, decoded side by side on the pool. Status codes of ReadSlotWeight; InvalidArgument:
// NaN or infinity; ResourceExhausted. Each names the slot.
absl::StatusOr<LinearMap> EncodeInF32(const Checkpoint& checkpoint,
                                      std::span<const LinearSlot> slots, ThreadPool& pool);

// Whether the slot's products are a decoder's logits: the head, or the table that it is tied to.
bool IsHead(const ModelSpec& spec, const LinearSlot& slot);

}  // namespace assay
