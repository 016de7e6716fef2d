#include "engine/ops/cpu/attention_impl.h"
#include "engine/ops/cpu/kernels_impl.h"
#include "engine/ops/cpu/vector_avx2.h"

namespace assay {

const OpKernels kAvx2Kernels = {
    .name = "avx2",
    .rms_norm = ElementKernels<VectorAvx2>::RmsNorm,
    .layer_norm = ElementKernels<VectorAvx2>::LayerNorm,
    .rope = ElementKernels<VectorAvx2>::Rope,
    .store_kv = ElementKernels<VectorAvx2>::StoreKv,
    .attention = AttentionKernel<VectorAvx2>::Run,
    .gated_activation = ElementKernels<VectorAvx2>::GatedActivation,
    .activate = ElementKernels<VectorAvx2>::Activate,
    .add = ElementKernels<VectorAvx2>::Add,
};

}  // namespace assay
