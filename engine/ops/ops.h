// What a backend implements besides linear layers. x, y: f32, row-major. Every function is
// batch-invariant (a row of the result depends on that row's own sequence alone, summed in a fixed
// order) and takes its scratch from the context's arena. Stateless, const, thread-safe.
#pragma once
#include <optional>
#include <span>
#include <string_view>

#include "base/arena.h"
#include "base/tensor.h"
#include "engine/ops/batch.h"
#include "engine/ops/kv_pool.h"

namespace assay {

enum class Activation { kSilu, kGelu, kGeluTanh, kRelu, kTanh };
std::optional<Activation> FindActivation(
    std::string_view hf_name);  // "silu", "gelu", "gelu_pytorch_tanh", "gelu_new", ...

// Columns of one wider row-major matrix (a fused q|k|v projection): row i begins at data + i *
// row_stride.
struct StridedRows {
  const float* data = nullptr;
  int64_t row_stride = 0;  // floats
};

struct AttentionArgs {
  StridedRows q;  // [rows, heads * head_dim], already rotated
  // [rows, kv_heads * head_dim], as StoreKv had them: only pools with slots look at them.
  StridedRows k, v;
  int heads = 0, kv_heads = 0, head_dim = 0;
  float scale = 0;         // 1 / sqrt(head_dim) unless the model says otherwise
  int sliding_window = 0;  // positions a row can look back, itself included; 0 = all
  MutableView y;           // [rows, heads * head_dim]
};

class Ops {
 public:
  virtual ~Ops() = default;
  // y = x / sqrt(mean(x^2) + eps) * gain. x, y [rows, d], gain [d]. y may be x.
  virtual void RmsNorm(TensorView x, TensorView gain, float eps, MutableView y,
                       ComputeContext& c) const = 0;
  // y = (x - mean) / sqrt(var + eps) * gain + bias. y may be x.
  virtual void LayerNorm(TensorView x, TensorView gain, TensorView bias, float eps, MutableView y,
                         ComputeContext& c) const = 0;
  // In place over heads of rows that lie `row_stride` floats apart: per-head RMS norm with gain
  // [head_dim] (Qwen3).
  virtual void HeadRmsNorm(float* x, int64_t row_stride, int64_t rows, int heads, TensorView gain,
                           float eps, ComputeContext& c) const = 0;
  // In place: rotates each head by its row's angles, element i paired with i + head_dim / 2
  // (rotate_half). cos, sin [rows, head_dim / 2].
  virtual void Rope(float* x, int64_t row_stride, int heads, TensorView cos, TensorView sin,
                    ComputeContext& c) const = 0;
  // Writes k, v [rows, kv_heads * head_dim] of the batch's rows into the pool at their positions.
  virtual void StoreKv(StridedRows k, StridedRows v, const ForwardBatch& batch, int layer,
                       KvPool& kv, ComputeContext& c) const = 0;
  // Causal attention of the batch's rows over the pool, whose blocks hold them already, but whose
  // slots do not yet: what the batch itself has in 16 bit comes from args.k and args.v.
  virtual void PagedAttention(const AttentionArgs& args, const ForwardBatch& batch, int layer,
                              const KvPool& kv, ComputeContext& c) const = 0;
  // Writes the batch's rows that later ones read in 16 bit into the slots: behind PagedAttention.
  // Nothing to do for pools without slots.
  virtual void StoreRecent(StridedRows k, StridedRows v, const ForwardBatch& batch, int layer,
                           KvPool& kv, ComputeContext& c) const = 0;
  // Bidirectional attention inside each sequence; k, v [rows, kv_heads * head_dim].
  virtual void SelfAttention(const AttentionArgs& args, StridedRows k, StridedRows v,
                             const ForwardBatch& batch, ComputeContext& c) const = 0;
  // y[rows, f] = act(x[:, :f]) * x[:, f:]; x [rows, 2 f].
  virtual void GatedActivation(Activation act, TensorView x, MutableView y,
                               ComputeContext& c) const = 0;
  virtual void Activate(Activation act, MutableView x, ComputeContext& c) const = 0;  // in place
  virtual void Add(TensorView x, MutableView y, ComputeContext& c) const = 0;         // y += x
  // Upper bound of the scratch of either attention for so many rows and so long a context. Bytes.
  virtual size_t attention_scratch_bytes(int64_t rows, int64_t context_tokens, int heads,
                                         int head_dim) const = 0;
};

// Unimplemented for a device whose backend is not built.
absl::StatusOr<const Ops*> OpsFor(const Device& device);

}  // namespace assay
