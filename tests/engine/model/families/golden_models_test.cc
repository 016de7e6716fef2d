// Every architecture against tiny random checkpoints with outputs computed by transformers
// (tests/golden/models/make.py): in one pass, token by token, in chunks, and in ragged batches.
#include <bit>
#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>

#include "engine/model/checkpoint.h"
#include "tests/engine/model/families/model_runner.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

// transformers and this engine both compute in f32; both stay within about 1e-5 of exact here.
constexpr double kTolerance = 1e-4;

struct GoldenSequence {
  std::vector<int32_t> tokens, types;
  std::vector<std::vector<float>> outputs;  // decoders [tokens, vocab]; encoders [1, width]
};

std::unique_ptr<const Checkpoint> Open(const std::string& name) {
  auto checkpoint = OpenCheckpoint(GoldenPath("models/" + name));
  EXPECT_OK(checkpoint);
  return *std::move(checkpoint);
}

std::vector<GoldenSequence> ReadSequences(const std::string& name, const ModelSpec& spec) {
  static_assert(std::endian::native == std::endian::little);
  const std::string bytes = ReadGolden("models/" + name + "/golden.f32");
  std::vector<float> all(bytes.size() / sizeof(float));
  std::memcpy(all.data(), bytes.data(), bytes.size());
  const bool decoder = spec.task == ModelTask::kGenerate;
  const int width = decoder                             ? spec.vocab
                    : spec.task == ModelTask::kClassify ? spec.num_labels
                                                        : spec.hidden;
  std::vector<GoldenSequence> sequences;
  auto at = all.begin();
  const nlohmann::json golden = ReadGoldenJson("models/" + name + "/golden.json");
  for (const nlohmann::json& item : golden["sequences"]) {
    GoldenSequence s{.tokens = item["tokens"],
                     .types = item.value("types", std::vector<int32_t>()),
                     .outputs = {}};
    for (size_t i = 0; i < (decoder ? s.tokens.size() : 1); ++i, at += width) {
      s.outputs.emplace_back(at, at + width);
    }
    sequences.push_back(std::move(s));
  }
  EXPECT_EQ(at, all.end()) << name << ": golden of another shape";
  return sequences;
}

double Worst(const std::vector<std::vector<float>>& a, const std::vector<std::vector<float>>& b) {
  double worst = a.size() == b.size() ? 0 : INFINITY;
  for (size_t i = 0; i < std::min(a.size(), b.size()); ++i) {
    worst = std::max(worst, MaxDifference(a[i], b[i]));
  }
  return worst;
}

std::vector<int32_t> Slice(const std::vector<int32_t>& v, int begin, int end) {
  return {v.begin() + begin, v.begin() + end};
}

class GoldenModelTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    checkpoint_ = Open(GetParam());
    auto model = BuildUniform(*checkpoint_, "f32", {});
    ASSERT_OK(model);
    model_ = *std::move(model);
    sequences_ = ReadSequences(GetParam(), model_->spec());
    ASSERT_EQ(sequences_.size(), 3u);
  }
  ModelRunner Runner() const { return ModelRunner(*model_, 3, 48); }
  ModelRunner::Chunk Whole(int s) const {
    return {.sequence = s, .tokens = sequences_[s].tokens, .token_types = sequences_[s].types};
  }
  std::unique_ptr<const Checkpoint> checkpoint_;
  std::unique_ptr<const Model> model_;
  std::vector<GoldenSequence> sequences_;
};
class GoldenDecoderTest : public GoldenModelTest {};

const auto kNameOf = [](const auto& info) { return std::string(info.param); };
INSTANTIATE_TEST_SUITE_P(Decoders, GoldenModelTest,
                         testing::Values("llama2", "llama3", "llama_linear", "llama_yarn",
                                         "llama_bias", "smollm", "mistral", "qwen2", "qwen3"),
                         kNameOf);
INSTANTIATE_TEST_SUITE_P(Decoders, GoldenDecoderTest,
                         testing::Values("llama2", "llama3", "llama_linear", "llama_yarn",
                                         "llama_bias", "smollm", "mistral", "qwen2", "qwen3"),
                         kNameOf);
INSTANTIATE_TEST_SUITE_P(Encoders, GoldenModelTest,
                         testing::Values("bert_mean", "bert_cls", "distilbert", "roberta",
                                         "bert_classifier", "distilbert_classifier",
                                         "roberta_classifier"),
                         kNameOf);

TEST_P(GoldenModelTest, OnePassPerSequence) {
  for (int s = 0; s < 3; ++s) {
    EXPECT_LT(Worst(Runner().Forward({Whole(s)}), sequences_[s].outputs), kTolerance) << s;
  }
}

TEST_P(GoldenModelTest, RaggedBatchOfAllSequencesAndBitExactWithEachAlone) {
  const auto together = Runner().Forward({Whole(2), Whole(0), Whole(1)});
  auto at = together.begin();
  for (const int s : {2, 0, 1}) {
    const std::vector<std::vector<float>> mine(at, at + sequences_[s].outputs.size());
    at += static_cast<int64_t>(mine.size());
    EXPECT_LT(Worst(mine, sequences_[s].outputs), kTolerance) << s;
    EXPECT_EQ(mine, Runner().Forward({Whole(s)})) << s;
  }
}

TEST_P(GoldenModelTest, TheObserverSeesEveryLinearAndChangesNothing) {
  for (const char* scheme : {"f32", "int8_channel"}) {
    auto model =
        BuildUniform(*checkpoint_, scheme,
                     {.activation = std::string_view(scheme) == "f32" ? ActivationMode::kA16
                                                                      : ActivationMode::kA8Token});
    ASSERT_OK(model);
    ModelRunner plain(**model, 3, 48), observed(**model, 3, 48);
    std::map<std::string, int> seen;
    const LinearObserver observer = [&](const LinearSlot& slot, TensorView x, TensorView y) {
      ++seen[slot.name];
      EXPECT_EQ(x.shape[1], slot.shape[1]) << slot.name;
      EXPECT_EQ(y.shape[1], slot.shape[0]) << slot.name;
      EXPECT_EQ(x.shape[0], y.shape[0]) << slot.name;
    };
    observed.observer = &observer;
    EXPECT_EQ(plain.Forward({Whole(1), Whole(2)}), observed.Forward({Whole(1), Whole(2)}));
    for (const LinearSlot& slot : (*model)->slots()) {
      const bool table = slot.kind == LinearSlot::Kind::kEmbedding && !(*model)->spec().tied_head;
      EXPECT_EQ(seen[slot.name], table ? 0 : 1) << slot.name;
    }
  }
}

TEST_P(GoldenModelTest, SlotsCoverTheCheckpointsMatrices) {
  size_t slots = 0, others = model_->other_weight_bytes(), linears = 0;
  for (const LinearSlot& slot : model_->slots()) {
    slots += slot.weights.size();
    EXPECT_EQ(model_->linears().count(slot.name), 1u) << slot.name;
    ASSERT_OK_AND_ASSIGN(const Tensor weight, ReadSlotWeight(*checkpoint_, slot));
    EXPECT_EQ(weight.shape(), slot.shape);
    linears += weight.bytes();
  }
  EXPECT_EQ(model_->linears().size(), model_->slots().size());
  EXPECT_LE(slots, checkpoint_->tensors().size());
  EXPECT_GT(others, 0u);
  EXPECT_GT(linears, 0u);
}

TEST_P(GoldenDecoderTest, TokenByToken) {
  ModelRunner runner = Runner();
  for (int s = 0; s < 3; ++s) {
    std::vector<std::vector<float>> logits;
    for (const int32_t token : sequences_[s].tokens) {
      const auto start = static_cast<int>(logits.size());
      logits.push_back(
          runner.Forward({{.sequence = s, .start = start, .tokens = {token}}}).front());
    }
    EXPECT_LT(Worst(logits, sequences_[s].outputs), kTolerance) << s;
  }
}

// The logits of sequence 2 in chunks, beside sequence 1.
std::vector<std::vector<float>> InChunks(ModelRunner runner, const std::vector<int32_t>& a,
                                         const std::vector<int32_t>& b) {
  std::vector<std::vector<float>> logits;
  const auto keep = [&](std::vector<std::vector<float>> part, int rows) {
    logits.insert(logits.end(), part.begin(), part.begin() + rows);
  };
  keep(runner.Forward({{.sequence = 2, .tokens = Slice(a, 0, 5)}}), 5);
  keep(runner.Forward({{.sequence = 2, .start = 5, .tokens = Slice(a, 5, 18)},
                       {.sequence = 1, .tokens = Slice(b, 0, 22)}}),
       13);
  keep(runner.Forward({{.sequence = 2, .start = 18, .tokens = Slice(a, 18, 19)},
                       {.sequence = 1, .start = 22, .tokens = Slice(b, 22, 23)}}),
       1);
  keep(runner.Forward({{.sequence = 2, .start = 19, .tokens = Slice(a, 19, 42)}}), 23);
  return logits;
}

TEST_P(GoldenDecoderTest, ChunksOfTwoSequencesSideBySideAreBitExactWithOnePass) {
  const auto logits = InChunks(Runner(), sequences_[2].tokens, sequences_[1].tokens);
  EXPECT_LT(Worst(logits, sequences_[2].outputs), kTolerance);
  EXPECT_EQ(logits, Runner().Forward({Whole(2)}));
}

// So they are where near queries read another form of a row than far ones; what that form is shows
// in the distance from the golden output: codes of 4 bits alone are the farthest, a window over
// everything leaves the rounding of f16.
TEST_P(GoldenDecoderTest, ChunksAreBitExactWithRowsInSixteenBitBesideCodes) {
  const auto runner = [&](int window, int sinks) {
    return ModelRunner(*model_, 3, 48, KvFormat(DType::kU4, window, sinks));
  };
  for (const auto& [window, sinks] : {std::pair{7, 2}, {16, 0}, {0, 3}, {1, 0}}) {
    const auto logits = InChunks(runner(window, sinks), sequences_[2].tokens, sequences_[1].tokens);
    EXPECT_EQ(logits, runner(window, sinks).Forward({Whole(2)}))
        << "window=" << window << " sinks=" << sinks;
    if (model_->spec().sliding_window > 0) continue;  // may see no more than this window
    EXPECT_NE(logits, runner(window + 1, sinks).Forward({Whole(2)}));
    EXPECT_NE(logits, runner(window, sinks + 1).Forward({Whole(2)}));
  }
  const double none = Worst(runner(0, 0).Forward({Whole(2)}), sequences_[2].outputs);
  const double all = Worst(runner(48, 0).Forward({Whole(2)}), sequences_[2].outputs);
  EXPECT_LT(20 * all, none);
}

TEST_P(GoldenDecoderTest, OnlyTheRowsAskedForHaveLogits) {
  const auto last = Runner().Forward(
      {{.sequence = 1, .tokens = sequences_[1].tokens, .all_logits = false}, Whole(0)});
  ASSERT_EQ(last.size(), 2u);
  EXPECT_LT(MaxDifference(last[0], sequences_[1].outputs.back()), kTolerance);
  EXPECT_LT(MaxDifference(last[1], sequences_[0].outputs.back()), kTolerance);
}

// The goldens can tell the variants apart: the same weights with one property of the model changed
// are far off.
struct Sabotage {
  const char* model;
  const char* what;
  std::function<void(ModelSpec&)> apply;
};
const Sabotage kSabotages[] = {
    {"llama3", "unscaled frequencies",
     [](ModelSpec& s) {
       for (size_t i = 0; i < s.rope_inv_freq.size(); ++i) {
         s.rope_inv_freq[i] = std::pow(100.0f, -2.0f * static_cast<float>(i) / s.head_dim);
       }
     }},
    {"llama_linear", "unscaled frequencies",
     [](ModelSpec& s) {
       for (float& f : s.rope_inv_freq) f *= 4;
     }},
    {"llama_yarn", "no attention factor", [](ModelSpec& s) { s.rope_attention_scale = 1; }},
    {"mistral", "no window", [](ModelSpec& s) { s.sliding_window = 0; }},
    {"mistral", "a window that is one longer", [](ModelSpec& s) { ++s.sliding_window; }},
    {"qwen2", "the window in all layers", [](ModelSpec& s) { s.window_first_layer = 0; }},
    {"qwen3", "no q and k norms", [](ModelSpec& s) { s.qk_norm = false; }},
    {"llama2", "another epsilon", [](ModelSpec& s) { s.norm_eps = 1e-2f; }},
    {"bert_mean", "the other pooling", [](ModelSpec& s) { s.pooling = Pooling::kCls; }},
    {"bert_mean", "no normalization", [](ModelSpec& s) { s.normalize = false; }},
    {"bert_cls", "the other gelu", [](ModelSpec& s) { s.activation = "gelu"; }},
    {"roberta", "positions from 0", [](ModelSpec& s) { s.position_offset = 0; }},
};

TEST(GoldenSabotageTest, DetectsEveryChangedProperty) {
  for (const Sabotage& sabotage : kSabotages) {
    SCOPED_TRACE(std::string(sabotage.model) + ": " + sabotage.what);
    const auto checkpoint = Open(sabotage.model);
    const auto intact = BuildUniform(*checkpoint, "f32", {});
    ASSERT_OK(intact);
    ModelSpec spec = (*intact)->spec();
    sabotage.apply(spec);
    ASSERT_OK_AND_ASSIGN(const ModelFamily* family, FamilyOf(*checkpoint));
    const auto model = family->build(spec, *checkpoint, (*intact)->linears());
    ASSERT_OK(model);
    const GoldenSequence s = ReadSequences(sabotage.model, spec)[2];
    const auto outputs =
        ModelRunner(**model, 1, 48).Forward({{.tokens = s.tokens, .token_types = s.types}});
    EXPECT_GT(Worst(outputs, s.outputs), 2 * kTolerance);
  }
}

}  // namespace
}  // namespace assay
