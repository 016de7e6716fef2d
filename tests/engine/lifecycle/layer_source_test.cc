#include "engine/lifecycle/layer_source.h"

#include "engine/lifecycle/fallback.h"
#include "engine/lifecycle/variants.h"
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

// Gives another layer's weights than it is asked for.
class SwappedLayers final : public LayerSource {
 public:
  SwappedLayers(const Checkpoint& checkpoint, std::shared_ptr<const Model> whole)
      : checkpoint_(checkpoint), whole_(std::move(whole)) {}
  const ModelSpec& spec() const override { return whole_->spec(); }
  const std::vector<LinearSlot>& slots() const override { return whole_->slots(); }
  absl::StatusOr<std::shared_ptr<const Model>> Layer(int layer) const override {
    if (layer != 1) return whole_;
    LinearMap linears = whole_->linears();
    for (const LinearSlot& slot : slots()) {
      if (slot.layer != 1) continue;
      for (const LinearSlot& other : slots()) {
        const bool same =
            other.name.substr(other.name.rfind('.')) == slot.name.substr(slot.name.rfind('.'));
        if (other.layer == 2 && same) linears[slot.name] = whole_->linears().at(other.name);
      }
    }
    ASSIGN_OR_RETURN(const ModelFamily* family, FamilyOf(checkpoint_));
    ASSIGN_OR_RETURN(std::shared_ptr<const Model> model,
                     family->build(spec(), checkpoint_, std::move(linears)));
    return model;
  }

 private:
  const Checkpoint& checkpoint_;
  const std::shared_ptr<const Model> whole_;
};

class LayerSourceTest : public testing::Test {
 protected:
  void SetUp() override { Open(Stories260k()); }
  void Open(const std::string& path) {
    ASSERT_OK_AND_ASSIGN(checkpoint_, OpenCheckpoint(path));
    ASSERT_OK_AND_ASSIGN(family_, FamilyOf(*checkpoint_));
    ASSERT_OK_AND_ASSIGN(whole_, BuildUniform(*checkpoint_, "f32", {}));
    const ModelSpec& spec = whole_->spec();
    streamed_ = std::make_unique<StreamedLayers>(*family_, spec, *checkpoint_, pool_);
    // More than a chunk of rows, and more than one pass of encoders.
    const int longest = std::min(spec.max_context, 200);
    const bool decoder = spec.task == ModelTask::kGenerate;
    set_ = {.documents =
                RandomDocuments({.documents = decoder ? size_t{3} : size_t{kEncoderSequences} + 3,
                                 .tokens = static_cast<size_t>(longest)},
                                spec.vocab, 7)};
  }
  // Every output of the set, the whole model run at once.
  std::vector<float> AtOnce() {
    std::vector<float> all;
    ModelPass pass =
        ModelPass::Create(*whole_, PassSize(whole_->spec(), set_, DType::kF32), pool_).value();
    const bool decoder = whole_->spec().task == ModelTask::kGenerate;
    // Observed passes add products to the stream in a step of their own.
    const LinearObserver observer = [](const LinearSlot&, TensorView, TensorView) {};
    const size_t step = decoder ? 1 : kEncoderSequences;
    for (size_t d = 0; d < set_.documents.size(); d += step) {
      const LinearObserver* seen = d == 0 ? &observer : nullptr;
      const auto add = [&](const std::vector<ModelPass::Span>& spans) {
        const std::span<const float> out = pass.Forward(spans, true, seen).value();
        all.insert(all.end(), out.begin(), out.end());
      };
      const std::vector<int32_t>& tokens = set_.documents[d];
      for (size_t start = 0; decoder && start < tokens.size(); start += kChunkRows) {
        const size_t rows = std::min<size_t>(kChunkRows, tokens.size() - start);
        add({{0, static_cast<int>(start), std::span(tokens).subspan(start, rows)}});
      }
      std::vector<ModelPass::Span> spans;
      for (size_t i = d; !decoder && i < std::min(d + step, set_.documents.size()); ++i)
        spans.push_back({static_cast<int>(i - d), 0, set_.documents[i]});
      if (!decoder) add(spans);
    }
    return all;
  }
  std::vector<float> LayerByLayer(const LayerSource& source) {
    std::vector<float> all;
    ReferenceOutputs outputs = ReferenceOutputs::Record(source, set_, pool_, nullptr).value();
    for (size_t d = 0; d < set_.documents.size(); ++d) {
      const auto length = static_cast<int>(set_.documents[d].size());
      const bool decoder = whole_->spec().task == ModelTask::kGenerate;
      for (int start = 0; start < (decoder ? length : 1); start += kChunkRows) {
        const std::span<const float> out =
            decoder ? outputs.Logits(d, start, std::min(kChunkRows, length - start))
                    : outputs.Output(d);
        all.insert(all.end(), out.begin(), out.end());
      }
    }
    return all;
  }
  std::shared_ptr<const QuantizedLinear> Quantized(const LinearSlot& slot) {
    const Tensor weight = ReadSlotWeight(*checkpoint_, slot).value();
    const QuantizedTensor codes =
        FindScheme("int4_group:g32").value()->Encode(weight.view()).value();
    return std::make_shared<const QuantizedLinear>(
        QuantizedLinear::Create(codes, ReadSlotBias(*checkpoint_, slot).value(), {}).value());
  }
  // All slots that are multiplied.
  std::vector<Variant> AllVariants() {
    std::vector<Variant> variants;
    for (const LinearSlot& slot : whole_->slots()) {
      if (slot.kind == LinearSlot::Kind::kEmbedding && !IsHead(whole_->spec(), slot)) continue;
      variants.push_back({slot.name, [this, &slot] { return Quantized(slot); }});
    }
    return variants;
  }

  ThreadPool pool_{{.num_threads = 2}};
  std::unique_ptr<const Checkpoint> checkpoint_;
  const ModelFamily* family_ = nullptr;
  std::shared_ptr<const Model> whole_;
  std::unique_ptr<const LayerSource> streamed_;
  EvaluationSet set_;
};

// A tied head, a head of its own, an encoder, a classifier. Bit for bit.
TEST_F(LayerSourceTest, TheStreamedReferenceIsTheWholeOne) {
  for (const std::string& path :
       {Stories260k(), GoldenPath("models/llama3"), GoldenPath("models/bert_mean"),
        GoldenPath("models/bert_classifier")}) {
    Open(path);
    const std::vector<float> expected = AtOnce();
    EXPECT_FALSE(expected.empty()) << path;
    EXPECT_EQ(LayerByLayer(*streamed_), expected) << path;
    EXPECT_EQ(LayerByLayer(ResidentLayers(whole_)), expected) << path;
  }
}

TEST_F(LayerSourceTest, AnotherLayersWeightsShow) {
  EXPECT_NE(LayerByLayer(SwappedLayers(*checkpoint_, whole_)), AtOnce());
}

TEST_F(LayerSourceTest, OnlyTheLayerThatWasAskedForIsThere) {
  ASSERT_OK_AND_ASSIGN(const std::shared_ptr<const Model> model, streamed_->Layer(2));
  size_t there = 0;
  for (const LinearSlot& slot : model->slots()) {
    const bool has = model->linears().at(slot.name) != nullptr;
    EXPECT_EQ(has, slot.layer == 2) << slot.name;
    there += has ? 1 : 0;
  }
  EXPECT_EQ(there, 4u);
  ASSERT_OK_AND_ASSIGN(ModelPass pass,
                       ModelPass::Create(*model, {.context = 4, .rows = 4, .out_rows = 4}, pool_));
  const std::vector<int32_t> tokens = {1, 2, 3};
  const ModelPass::Span span{0, 0, tokens};
  EXPECT_THAT(pass.Forward(std::span(&span, 1)).status(),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("no weights of ")));
}

TEST_F(LayerSourceTest, APassOverOneLayerNeedsThatLayersCache) {
  ASSERT_OK_AND_ASSIGN(
      ModelPass pass,
      ModelPass::Create(
          *whole_, {.context = 4, .rows = 4, .out_rows = 0, .first_layer = 2, .layers = 1}, pool_));
  EXPECT_EQ(pass.kv()->layout().layers, 1);
  const std::vector<int32_t> tokens = {1, 2, 3};
  const ModelPass::Span span{0, 0, tokens};
  std::vector<float> stream(3 * static_cast<size_t>(whole_->spec().hidden));
  const auto through = [&](int first, int end) {
    const LayerPart part{first,
                         end,
                         {reinterpret_cast<std::byte*>(stream.data()),
                          {3, whole_->spec().hidden},
                          DType::kF32,
                          &CpuDevice()}};
    return pass.Forward(std::span(&span, 1), false, nullptr, &part).status();
  };
  EXPECT_OK(through(2, 3));
  EXPECT_THAT(through(1, 2), StatusIs(StatusCode::kInvalidArgument, HasSubstr("KV pool")));
  EXPECT_THAT(through(2, 4), StatusIs(StatusCode::kInvalidArgument, HasSubstr("KV pool")));
}

// One walk for all of them: the same figures as every model by itself.
TEST_F(LayerSourceTest, VariantsCostWhatTheyCostAlone) {
  for (const std::string& path :
       {Stories260k(), GoldenPath("models/llama3"), GoldenPath("models/bert_mean")}) {
    Open(path);
    const auto verifier = Verifier::Create(*streamed_, set_, pool_).value();
    const Verifier::Extent extent{.documents = 2, .tokens = 150, .decode_path = false};
    const std::vector<Variant> variants = AllVariants();
    VariantInputs inputs{*family_, *checkpoint_, *streamed_, *verifier, extent};
    ASSERT_OK_AND_ASSIGN(const auto together, CompareVariants(inputs, variants, nullptr));
    inputs.most_stream_bytes = 1;  // one at a time
    ASSERT_OK_AND_ASSIGN(const auto apart, CompareVariants(inputs, variants, nullptr));
    ASSERT_EQ(together.size(), variants.size());
    for (size_t i = 0; i < variants.size(); ++i) {
      LinearMap linears = whole_->linears();
      linears[variants[i].slot] = variants[i].linear().value();
      ASSERT_OK_AND_ASSIGN(const std::unique_ptr<const Model> model,
                           family_->build(whole_->spec(), *checkpoint_, std::move(linears)));
      ASSERT_OK_AND_ASSIGN(const VerificationResult alone,
                           verifier->Compare(*model, DType::kF32, extent, nullptr));
      const double loss = LossOf(alone, whole_->spec().task);
      EXPECT_EQ(LossOf(together[i], whole_->spec().task), loss) << variants[i].slot;
      EXPECT_EQ(LossOf(apart[i], whole_->spec().task), loss) << variants[i].slot;
      EXPECT_GT(loss, 0) << variants[i].slot;
    }
  }
}

// Of stories260K, whose table is its head.
TEST_F(LayerSourceTest, ATiedTableIsDecodedOnceWhileLayerZeroIsHeld) {
  const int layers = whole_->spec().layers;
  const std::string table =
      Verifier::Create(*streamed_, set_, pool_).value()->reference().head_slot();
  const auto decoded = [&](int layer) {
    return streamed_->Layer(layer).value()->linears().find(table)->second;
  };
  std::shared_ptr<const Model> first = streamed_->Layer(0).value();
  EXPECT_EQ(decoded(layers), first->linears().find(table)->second);
  const std::weak_ptr<const QuantizedLinear> gone = first->linears().find(table)->second;
  first.reset();
  EXPECT_TRUE(gone.expired());  // the source itself holds nothing
  EXPECT_NE(decoded(layers), nullptr);
  EXPECT_EQ(decoded(1), nullptr);
}

TEST_F(LayerSourceTest, AVariantOfNoSlotIsRefused) {
  const auto verifier = Verifier::Create(*streamed_, set_, pool_).value();
  const VariantInputs inputs{*family_, *checkpoint_, *streamed_, *verifier, {}};
  EXPECT_THAT(CompareVariants(inputs, {{"model.layers.9.q_proj", nullptr}}, nullptr),
              StatusIs(StatusCode::kNotFound, HasSubstr("layers.9")));
}

}  // namespace
}  // namespace assay
