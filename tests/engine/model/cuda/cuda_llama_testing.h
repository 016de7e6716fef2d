// The bundled model on a device of the test's world (tests/support/cuda_world.h), and logits of it.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "engine/lifecycle/model_pass.h"
#include "engine/model/checkpoint.h"
#include "engine/model/cuda/cuda_llama.h"
#include "engine/model/families/llama_spec.h"
#include "engine/runtime/engine.h"
#include "quant/kernels/cuda/cuda_kernel.h"
#include "tests/support/cuda_world.h"
#include "tests/support/fake_model_metrics.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"
#include "tests/support/stream_recorder.h"

namespace assay {

inline constexpr CudaLinearKernels kLinearKernels = ASSAY_CUDA_LINEAR_KERNELS(world);
inline constexpr CudaOpsKernels kOpsKernels = ASSAY_CUDA_OPS_KERNELS(world);

struct Golden {
  std::vector<int32_t> prompt, greedy;
};

class CudaLlamaTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(checkpoint_,
                         OpenCheckpoint(GoldenPath("../../data/stories260k/stories260K-f32.gguf")));
    ASSERT_OK_AND_ASSIGN(device_, CudaDevice::Open(WorldCuda(), 0, WorldProfile()));
    ASSERT_OK_AND_ASSIGN(tokenizer_, MakeTokenizer(checkpoint_->tokenizer()));
    for (const nlohmann::json& g : ReadGoldenJson("../../data/stories260k/golden.json"))
      goldens_.push_back({g["prompt_ids"], g["greedy_ids"]});
    ASSERT_EQ(goldens_.size(), 3u);
  }
  // Every layer in one scheme. The table is read, not multiplied: a16.
  absl::StatusOr<std::shared_ptr<const Model>> TryBuild(std::string_view spelling,
                                                        ActivationMode activation,
                                                        const CudaModelOptions& options) {
    const CudaBackend backend = {*device_, kLinearKernels, half_, lt_.get()};
    kernels_.push_back(std::make_unique<CudaLinearKernel>("cuda", backend));
    ASSIGN_OR_RETURN(const QuantScheme* const scheme, FindScheme(spelling));
    ASSIGN_OR_RETURN(const ModelFamily* const family, FamilyOf(*checkpoint_));
    ASSIGN_OR_RETURN(const ModelSpec spec, family->parse(*checkpoint_));
    LinearMap linears;
    for (const LinearSlot& slot : family->slots(spec)) {
      ASSIGN_OR_RETURN(const Tensor weight, ReadSlotWeight(*checkpoint_, slot));
      ASSIGN_OR_RETURN(const QuantizedTensor w, scheme->Encode(weight.view()));
      const bool table = slot.kind == LinearSlot::Kind::kEmbedding;
      ASSIGN_OR_RETURN(QuantizedLinear linear,
                       MakeCudaQuantizedLinear(*kernels_.back(), w, Tensor(),
                                               table ? ActivationMode::kA16 : activation));
      linears[slot.name] = std::make_shared<const QuantizedLinear>(std::move(linear));
    }
    ASSIGN_OR_RETURN(
        std::unique_ptr<const Model> model,
        BuildCudaLlama(backend, kOpsKernels, spec, *checkpoint_, std::move(linears), options));
    return std::shared_ptr<const Model>(std::move(model));
  }
  std::shared_ptr<const Model> Build(std::string_view spelling,
                                     ActivationMode activation = ActivationMode::kA16,
                                     const CudaModelOptions& options = {.decode_splits = 2}) {
    auto model = TryBuild(spelling, activation, options);
    EXPECT_OK(model);
    return *std::move(model);
  }
  std::unique_ptr<GenerateEngine> Start(std::shared_ptr<const Model> model) {
    EngineOptions options;
    options.kv_format = kv_format_;
    options.max_step_tokens = 48;
    options.max_sequences = 4;
    options.max_context = 256;
    metrics_ = std::make_shared<FakeModelMetrics>();
    auto engine = GenerateEngine::Start(std::move(model), tokenizer_, options,
                                        {pool_, RealClock(), metrics_});
    EXPECT_OK(engine);
    return *std::move(engine);
  }
  std::vector<int32_t> LongPrompt() const {
    std::vector<int32_t> tokens;
    for (const Golden& g : goldens_) tokens.insert(tokens.end(), g.greedy.begin(), g.greedy.end());
    tokens.resize(90);
    return tokens;
  }
  // Logits after each token of `tokens`, as one prompt cut into `chunk` rows.
  std::vector<float> Logits(const Model& model, std::span<const int32_t> tokens, int num_prompt,
                            int chunk) {
    auto pass = ModelPass::Create(model,
                                  {.sequences = 1,
                                   .context = static_cast<int>(tokens.size()),
                                   .rows = chunk,
                                   .out_rows = chunk,
                                   .kv_format = kv_format_},
                                  pool_);
    EXPECT_OK(pass.status());
    std::vector<float> all;
    for (size_t at = 0; at < tokens.size(); at += static_cast<size_t>(chunk)) {
      const auto part =
          tokens.subspan(at, std::min(tokens.size() - at, static_cast<size_t>(chunk)));
      const ModelPass::Span span{0, static_cast<int32_t>(at), part, num_prompt};
      const auto logits = pass->Forward(std::span(&span, 1), true, nullptr);
      EXPECT_OK(logits.status());
      if (!logits.ok()) return all;
      all.insert(all.end(), logits->begin(), logits->end());
    }
    return all;
  }

  Half half_ = Half::kF16;
  KvFormat kv_format_ = DType::kF16;
  std::shared_ptr<FakeModelMetrics> metrics_;  // of the engine that was started last
  ThreadPool pool_{{.num_threads = 2}};
  std::unique_ptr<CudaDevice> device_;
  std::unique_ptr<LtProducts> lt_;
  std::shared_ptr<const Checkpoint> checkpoint_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::vector<std::unique_ptr<CudaLinearKernel>> kernels_;
  std::vector<Golden> goldens_;
};

// Mean KL of `other` from `exact`, both [rows, vocab].
inline double MeanKl(std::span<const float> exact, std::span<const float> other, size_t vocab) {
  double total = 0;
  for (size_t row = 0; row < exact.size(); row += vocab) {
    double max_a = -1e30, max_b = -1e30, sum_a = 0, sum_b = 0, kl = 0;
    for (size_t i = 0; i < vocab; ++i) {
      max_a = std::max(max_a, static_cast<double>(exact[row + i]));
      max_b = std::max(max_b, static_cast<double>(other[row + i]));
    }
    for (size_t i = 0; i < vocab; ++i) {
      sum_a += std::exp(exact[row + i] - max_a);
      sum_b += std::exp(other[row + i] - max_b);
    }
    for (size_t i = 0; i < vocab; ++i) {
      const double a = exact[row + i] - max_a - std::log(sum_a);
      kl += std::exp(a) * (a - (other[row + i] - max_b - std::log(sum_b)));
    }
    total += kl;
  }
  return total * static_cast<double>(vocab) / static_cast<double>(exact.size());
}

}  // namespace assay
