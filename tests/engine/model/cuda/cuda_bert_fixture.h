// Encoders on an emulated GPU, as admission builds them, beside the same on the CPU.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "base/thread_pool.h"
#include "engine/lifecycle/model_pass.h"
#include "engine/model/cuda/gpus.h"
#include "engine/model/families/forward_parts.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {

struct Text {
  std::vector<int32_t> tokens, types;
  std::vector<float> golden;
};
using Outputs = std::vector<std::vector<float>>;

inline std::shared_ptr<const Checkpoint> OpenGolden(const std::string& name) {
  auto checkpoint = OpenCheckpoint(GoldenPath("models/" + name));
  EXPECT_OK(checkpoint);
  return *std::move(checkpoint);
}

// What transformers computed (tests/golden/models/make.py).
inline std::vector<Text> ReadTexts(const std::string& name, const ModelSpec& spec) {
  const std::string bytes = ReadGolden("models/" + name + "/golden.f32");
  const auto width = static_cast<size_t>(EncoderColumns(spec));
  std::vector<Text> texts;
  const nlohmann::json golden = ReadGoldenJson("models/" + name + "/golden.json");
  for (const nlohmann::json& item : golden["sequences"]) {
    Text& text = texts.emplace_back();
    text.tokens = item["tokens"].get<std::vector<int32_t>>();
    text.types = item.value("types", std::vector<int32_t>());
    text.golden.resize(width);
    std::memcpy(text.golden.data(), bytes.data() + (texts.size() - 1) * width * sizeof(float),
                width * sizeof(float));
  }
  return texts;
}

// |a - b| / |b|.
inline double Distance(const std::vector<float>& a, const std::vector<float>& b) {
  if (a.size() != b.size()) return INFINITY;
  double difference = 0, squares = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    squares += double{b[i]} * b[i];
  }
  return std::sqrt(difference / squares);
}
inline double Worst(const Outputs& a, const Outputs& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    const double distance = Distance(a[i], b[i]);
    worst = std::isnan(distance) ? INFINITY : std::max(worst, distance);
  }
  return worst;
}

class CudaBertFixture : public testing::Test {
 protected:
  void SetUp() override { Open("sm75"); }
  // sm75: 16 bit are f16; sm86: bf16.
  void Open(const char* profile) {
    auto backend = GpuBackend::Open(world_, 0, profile, /*lt_directory=*/"");
    ASSERT_OK(backend);
    backend_ = *std::move(backend);
  }
  // Every layer in one scheme. The table is read, not multiplied: a16. `change` edits the spec.
  absl::StatusOr<std::shared_ptr<const Model>> TryBuild(
      const Checkpoint& checkpoint, std::string_view spelling,
      ActivationMode activation = ActivationMode::kA16,
      const std::function<void(ModelSpec&)>& change = nullptr) const {
    ASSIGN_OR_RETURN(const QuantScheme* const scheme, FindScheme(spelling));
    ASSIGN_OR_RETURN(const ModelFamily* const family, FamilyOf(checkpoint));
    ASSIGN_OR_RETURN(ModelSpec spec, family->parse(checkpoint));
    if (change) change(spec);
    LinearMap linears;
    for (const LinearSlot& slot : family->slots(spec)) {
      ASSIGN_OR_RETURN(const Tensor weight, ReadSlotWeight(checkpoint, slot));
      ASSIGN_OR_RETURN(Tensor bias, ReadSlotBias(checkpoint, slot));
      ASSIGN_OR_RETURN(const QuantizedTensor w, scheme->Encode(weight.view()));
      const bool table = slot.kind == LinearSlot::Kind::kEmbedding;
      ASSIGN_OR_RETURN(
          QuantizedLinear linear,
          backend_->MakeLinear(w, std::move(bias), table ? ActivationMode::kA16 : activation));
      linears[slot.name] = std::make_shared<const QuantizedLinear>(std::move(linear));
    }
    ASSIGN_OR_RETURN(std::unique_ptr<const Model> model,
                     backend_->Build(*family, spec, checkpoint, std::move(linears)));
    return std::shared_ptr<const Model>(std::move(model));
  }
  std::shared_ptr<const Model> Build(const Checkpoint& checkpoint, std::string_view spelling,
                                     ActivationMode activation = ActivationMode::kA16) const {
    auto model = TryBuild(checkpoint, spelling, activation);
    EXPECT_OK(model);
    return *std::move(model);
  }
  // One batch, in scratch of exactly its size.
  absl::StatusOr<Outputs> TryRun(const Model& model, const std::vector<Text>& texts) {
    std::vector<ModelPass::Span> spans;
    int rows = 0;
    for (const Text& text : texts) {
      rows += static_cast<int>(text.tokens.size());
      spans.push_back({.tokens = text.tokens, .token_types = text.types});
    }
    const auto count = static_cast<int>(texts.size());
    ASSIGN_OR_RETURN(
        ModelPass pass,
        ModelPass::Create(
            model, {.sequences = count, .context = rows, .rows = rows, .out_rows = count}, pool_));
    ASSIGN_OR_RETURN(const std::span<const float> all, pass.Forward(spans));
    const size_t width = all.size() / texts.size();
    Outputs outputs;
    for (size_t i = 0; i < texts.size(); ++i)
      outputs.emplace_back(all.begin() + static_cast<ptrdiff_t>(i * width),
                           all.begin() + static_cast<ptrdiff_t>((i + 1) * width));
    return outputs;
  }
  Outputs Run(const Model& model, const std::vector<Text>& texts) {
    auto outputs = TryRun(model, texts);
    EXPECT_OK(outputs);
    return outputs.ok() ? *std::move(outputs) : Outputs();
  }

  const CudaWorld world_ = {EmulatedCuda(), EmulatedLinearKernels(), EmulatedOpsKernels()};
  ThreadPool pool_{{.num_threads = 2}};
  std::unique_ptr<GpuBackend> backend_;
};

}  // namespace assay
