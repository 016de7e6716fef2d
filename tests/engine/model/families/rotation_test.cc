// A rotated residual stream leaves the function of every golden decoder unchanged; one with a part
// left out does not; and outlier channels are gone.
#include "engine/model/rotation.h"

#include <cmath>

#include "gmock/gmock.h"
#include "quant/methods/hadamard.h"
#include "tests/engine/model/families/model_runner.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

// `name` as `other` has it, one of its columns times 30.
class Mixed final : public Checkpoint {
 public:
  Mixed(const Checkpoint& most, const Checkpoint& other, std::string name, int column = -1)
      : most_(most), other_(other), name_(std::move(name)), column_(column) {}
  std::string_view format() const override { return most_.format(); }
  std::span<const CheckpointTensor> tensors() const override { return most_.tensors(); }
  absl::StatusOr<const CheckpointTensor*> Find(std::string_view name) const override {
    return (name == name_ ? other_ : most_).Find(name);
  }
  absl::Status ReadRows(std::string_view name, int64_t row, int64_t rows,
                        std::span<float> out) const override {
    const absl::Status read = (name == name_ ? other_ : most_).ReadRows(name, row, rows, out);
    const size_t columns = out.size() / static_cast<size_t>(std::max<int64_t>(rows, 1));
    for (size_t i = 0; column_ >= 0 && name == name_ && i < out.size(); ++i)
      if (i % columns == static_cast<size_t>(column_)) out[i] *= 30;
    return read;
  }
  void DropResident(std::string_view) const override {}
  const nlohmann::json& config() const override { return most_.config(); }
  const nlohmann::json& tokenizer() const override { return most_.tokenizer(); }
  absl::StatusOr<std::string> ContentHash() const override { return most_.ContentHash(); }
  uint64_t file_bytes() const override { return most_.file_bytes(); }

 private:
  const Checkpoint &most_, &other_;
  const std::string name_;
  const int column_;
};

std::vector<int8_t> Signs(int64_t n) {
  const HadamardRotation rotation = HadamardRotation::Create(n, /*seed=*/3).value();
  return {rotation.signs().begin(), rotation.signs().end()};
}

std::vector<float> Outputs(const Checkpoint& checkpoint, const LinearObserver* observer = nullptr) {
  const auto model = BuildUniform(checkpoint, "f32", {});
  EXPECT_OK(model);
  ModelRunner runner(**model, 1, 48);
  runner.observer = observer;
  ModelRunner::Chunk chunk;
  for (int i = 0; i < 24; ++i) chunk.tokens.push_back((i * 7 + 3) % (*model)->spec().vocab);
  std::vector<float> all;
  for (const std::vector<float>& row : runner.Forward({chunk}))
    all.insert(all.end(), row.begin(), row.end());
  return all;
}

class RotationTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    ASSERT_OK_AND_ASSIGN(checkpoint_,
                         OpenCheckpoint(GoldenPath(std::string("models/") + GetParam())));
    family_ = FamilyOf(*checkpoint_).value();
    spec_ = family_->parse(*checkpoint_).value();
  }
  std::unique_ptr<const Checkpoint> Rotated(const Checkpoint& base) const {
    return RotateStream(base, *family_, spec_, Signs(spec_.hidden)).value();
  }

  std::unique_ptr<const Checkpoint> checkpoint_;
  const ModelFamily* family_ = nullptr;
  ModelSpec spec_;
};

INSTANTIATE_TEST_SUITE_P(Golden, RotationTest,
                         testing::Values("llama2", "llama3", "llama_bias", "llama_linear",
                                         "llama_yarn", "mistral", "qwen2", "qwen3", "smollm"),
                         [](const auto& info) { return std::string(info.param); });

// Every weight goes through one or two sums of n products that are exact but for their rounding,
// n + log2 n <= 42 of them with sqrt(n) of the errors in the same direction: below 10 eps of a
// row's norm, as a product's own sum has. Over a dozen linears that stays below 1e-4 of what comes
// out.
TEST_P(RotationTest, LeavesTheFunctionUnchangedAndSeesAnyPartLeftOut) {
  const std::vector<float> exact = Outputs(*checkpoint_);
  double largest = 0;
  for (const float v : exact) largest = std::max<double>(largest, std::fabs(v));
  const auto rotated = Rotated(*checkpoint_);
  EXPECT_LE(MaxDifference(Outputs(*rotated), exact), 1e-4 * largest);
  std::vector<std::string> parts = {
      "model.layers.0.input_layernorm.weight",  "model.layers.1.post_attention_layernorm.weight",
      "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.v_proj.weight",
      "model.layers.1.self_attn.o_proj.weight", "model.layers.0.mlp.gate_proj.weight",
      "model.layers.1.mlp.down_proj.weight"};
  if (spec_.o_bias) parts.emplace_back("model.layers.0.self_attn.o_proj.bias");
  if (spec_.mlp_bias) parts.emplace_back("model.layers.0.mlp.down_proj.bias");
  if (spec_.qkv_bias) parts.emplace_back("model.layers.0.self_attn.v_proj.bias");
  if (spec_.tied_head) {
    parts.emplace_back(kStreamRotation);
  } else {
    for (const char* part : {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"})
      parts.emplace_back(part);
  }
  for (const std::string& part : parts) {
    const Mixed broken(*rotated, *checkpoint_, part);
    EXPECT_GT(MaxDifference(Outputs(broken), exact), 1e-3 * largest) << part;
  }
}

TEST_P(RotationTest, RowsReadAloneAreThoseOfTheWhole) {
  const auto rotated = Rotated(*checkpoint_);
  for (const CheckpointTensor& tensor : checkpoint_->tensors()) {
    ASSERT_OK_AND_ASSIGN(const Tensor whole, rotated->ReadAll(tensor.name));
    const int64_t columns = tensor.shape.elements() / tensor.shape[0];
    for (const int64_t row : {int64_t{0}, tensor.shape[0] / 2, tensor.shape[0] - 1}) {
      std::vector<float> one(static_cast<size_t>(columns));
      ASSERT_OK(rotated->ReadRows(tensor.name, row, 1, one));
      for (int64_t i = 0; i < columns; ++i)
        ASSERT_EQ(one[i], whole.data<float>()[row * columns + i]) << tensor.name << " row " << row;
    }
  }
}

// Kurtosis of the first projection's input, over all its values.
double InputKurtosis(const Checkpoint& checkpoint) {
  double sum = 0, squares = 0, fourth = 0, count = 0;
  const LinearObserver observer = [&](const LinearSlot& slot, TensorView x, TensorView) {
    if (slot.layer != 0 || slot.name.find("qkv_proj") == std::string::npos) return;
    for (int64_t i = 0; i < x.shape.elements(); ++i) {
      const double v = x.as<float>()[i];
      sum += v;
      squares += v * v;
      fourth += v * v * v * v;
      ++count;
    }
  };
  Outputs(checkpoint, &observer);
  EXPECT_LT(std::fabs(sum / count), 0.5 * std::sqrt(squares / count));  // about its own mean
  return fourth / count / std::pow(squares / count, 2);
}

// A channel of the stream thirty times as large as the others: nearly all of the input's energy in
// 1 / n of its values, a kurtosis near n. Rotated, every value is a sum of all channels with random
// signs, of which one dominates: they are all alike but for their sign, a kurtosis near 1.
TEST_P(RotationTest, AnOutlierChannelIsSpread) {
  const Mixed outlier(*checkpoint_, *checkpoint_, "model.embed_tokens.weight", /*column=*/5);
  const double before = InputKurtosis(outlier), after = InputKurtosis(*Rotated(outlier));
  EXPECT_GT(before, 8);
  EXPECT_LT(after, 3.5);
}

TEST(RotateStreamTest, WhatCannotBeRotatedIsNamed) {
  ASSERT_OK_AND_ASSIGN(const auto bert, OpenCheckpoint(GoldenPath("models/bert_mean")));
  const ModelFamily* family = FamilyOf(*bert).value();
  const ModelSpec spec = family->parse(*bert).value();
  EXPECT_THAT(RotateStream(*bert, *family, spec, Signs(spec.hidden)).status(),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("architecture=bert")));
  ASSERT_OK_AND_ASSIGN(const auto llama, OpenCheckpoint(GoldenPath("models/llama2")));
  family = FamilyOf(*llama).value();
  ModelSpec other = family->parse(*llama).value();
  EXPECT_THAT(RotateStream(*llama, *family, other, Signs(64)).status(),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("signs=64")));
  other.hidden = 92;
  EXPECT_THAT(RotateStream(*llama, *family, other, std::vector<int8_t>(92, 1)).status(),
              StatusIs(StatusCode::kUnimplemented, HasSubstr("n=92")));
}

}  // namespace
}  // namespace assay
