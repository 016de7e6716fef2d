#include "engine/ops/cpu/attention_impl.h"
#include "engine/ops/cpu/kernels_impl.h"
#include "engine/ops/cpu/vector_sse2.h"

namespace assay {

const OpKernels kBaselineKernels = {
    .name = "sse2",
    .rms_norm = ElementKernels<VectorSse2>::RmsNorm,
    .layer_norm = ElementKernels<VectorSse2>::LayerNorm,
    .rope = ElementKernels<VectorSse2>::Rope,
    .store_kv = ElementKernels<VectorSse2>::StoreKv,
    .attention = AttentionKernel<VectorSse2>::Run,
    .gated_activation = ElementKernels<VectorSse2>::GatedActivation,
    .activate = ElementKernels<VectorSse2>::Activate,
    .add = ElementKernels<VectorSse2>::Add,
};

}  // namespace assay
