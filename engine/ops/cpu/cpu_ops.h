// Ops on the host: splits rows over the pool and hands them to the kernels of one instruction set.
#pragma once
#include "engine/ops/cpu/kernels.h"
#include "engine/ops/ops.h"

namespace assay {

class CpuOps final : public Ops {
 public:
  explicit CpuOps(const OpKernels& kernels) : k_(kernels) {}

  void RmsNorm(TensorView x, TensorView gain, float eps, MutableView y,
               ComputeContext& c) const override;
  void LayerNorm(TensorView x, TensorView gain, TensorView bias, float eps, MutableView y,
                 ComputeContext& c) const override;
  void HeadRmsNorm(float* x, int64_t row_stride, int64_t rows, int heads, TensorView gain,
                   float eps, ComputeContext& c) const override;
  void Rope(float* x, int64_t row_stride, int heads, TensorView cos, TensorView sin,
            ComputeContext& c) const override;
  void StoreKv(StridedRows k, StridedRows v, const ForwardBatch& batch, int layer, KvPool& kv,
               ComputeContext& c) const override;
  void PagedAttention(const AttentionArgs& args, const ForwardBatch& batch, int layer,
                      const KvPool& kv, ComputeContext& c) const override;
  void StoreRecent(StridedRows k, StridedRows v, const ForwardBatch& batch, int layer, KvPool& kv,
                   ComputeContext& c) const override;
  void SelfAttention(const AttentionArgs& args, StridedRows k, StridedRows v,
                     const ForwardBatch& batch, ComputeContext& c) const override;
  void GatedActivation(Activation act, TensorView x, MutableView y,
                       ComputeContext& c) const override;
  void Activate(Activation act, MutableView x, ComputeContext& c) const override;
  void Add(TensorView x, MutableView y, ComputeContext& c) const override;
  // Attention works on the stack of each worker: no arena.
  size_t attention_scratch_bytes(int64_t rows, int64_t context_tokens, int heads,
                                 int head_dim) const override;

 private:
  const OpKernels& k_;
};

// The fastest set of kernels that HostCpu() can run; chosen once.
const CpuOps& HostCpuOps();

}  // namespace assay
