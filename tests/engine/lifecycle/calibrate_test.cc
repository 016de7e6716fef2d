#include "engine/lifecycle/calibrate.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "quant/methods/rounding.h"
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::SizeIs;

using Inputs = std::map<std::string, std::vector<float>>;  // slot -> all of its rows

class CalibrateTest : public testing::Test {
 protected:
  void SetUp() override { Open(Stories260k()); }
  void Open(const std::string& path) {
    ASSERT_OK_AND_ASSIGN(checkpoint_, OpenCheckpoint(path));
    ASSERT_OK_AND_ASSIGN(model_, BuildUniform(*checkpoint_, "f32", {}));
    // Whole contexts, which the head sees in several chunks, and samples shorter than a chunk.
    const ModelSpec& spec = model_->spec();
    const auto longest = static_cast<size_t>(std::min(spec.max_context, 600));
    set_.samples = RandomDocuments({.documents = 1, .tokens = longest}, spec.vocab, 5);
    const auto more = RandomDocuments({.documents = 2, .tokens = longest / 10}, spec.vocab, 6);
    set_.samples.insert(set_.samples.end(), more.begin(), more.end());
  }
  CalibrationRun run() { return {set_, pool_, nullptr}; }
  // Keeps every row of the slots whose name contains `part`.
  static CollectorFactory KeepInto(Inputs& inputs, const std::string& part = "") {
    return [&inputs, part](const LinearSlot& slot) -> absl::StatusOr<InputCollector> {
      if (slot.name.find(part) == std::string::npos) return InputCollector();
      std::vector<float>& rows = inputs[slot.name];
      return InputCollector([&rows, k = slot.shape[1]](TensorView x, TensorView) {
        EXPECT_EQ(x.shape[1], k);
        rows.insert(rows.end(), x.as<float>(), x.as<float>() + x.shape.elements());
        return absl::OkStatus();
      });
    };
  }
  Inputs Collected(const Model& model) {
    Inputs inputs;
    EXPECT_OK(CollectInputs(model, run(), KeepInto(inputs)));
    return inputs;
  }
  // `from` with the linears of the named slots in 8 bit, and of all that were named before.
  absl::StatusOr<std::shared_ptr<const Model>> Requantized(
      const Model& from, const std::vector<const LinearSlot*>& slots) {
    for (const LinearSlot* slot : slots) {
      ASSIGN_OR_RETURN(const Tensor weight, ReadSlotWeight(*checkpoint_, *slot));
      ASSIGN_OR_RETURN(const QuantizedTensor codes,
                       FindScheme("int8_channel").value()->Encode(weight.view()));
      ASSIGN_OR_RETURN(Tensor bias, ReadSlotBias(*checkpoint_, *slot));
      ASSIGN_OR_RETURN(QuantizedLinear linear, QuantizedLinear::Create(codes, std::move(bias), {}));
      requantized_[slot->name] = std::make_shared<const QuantizedLinear>(std::move(linear));
    }
    LinearMap linears = from.linears();
    for (const auto& [name, linear] : requantized_) linears[name] = linear;
    ASSIGN_OR_RETURN(const ModelFamily* family, FamilyOf(*checkpoint_));
    return family->build(from.spec(), *checkpoint_, std::move(linears));
  }

  // |W x_full - Q x|^2 over |W x_full|^2.
  static double OutputDistance(const Tensor& weight, const QuantizedTensor& q,
                               const std::vector<float>& x, const std::vector<float>& x_full) {
    const int64_t n = weight.shape()[0], k = weight.shape()[1];
    std::vector<float> decoded(static_cast<size_t>(n * k));
    EXPECT_OK(q.scheme->DecodeRows(q, 0, n, std::span<float>(decoded)));
    double noise = 0, signal = 0;
    for (size_t row = 0; row < x.size(); row += static_cast<size_t>(k)) {
      for (int64_t i = 0; i < n; ++i) {
        double exact = 0, actual = 0;
        for (int64_t j = 0; j < k; ++j) {
          exact += static_cast<double>(weight.data<float>()[i * k + j]) * x_full[row + j];
          actual += static_cast<double>(decoded[i * k + j]) * x[row + j];
        }
        noise += (exact - actual) * (exact - actual);
        signal += exact * exact;
      }
    }
    return noise / signal;
  }

  ThreadPool pool_{{.num_threads = 2}};
  std::unique_ptr<const Checkpoint> checkpoint_;
  std::shared_ptr<const Model> model_;
  LinearMap requantized_;
  CalibrationSet set_;
};

TEST_F(CalibrateTest, EverySlotSeesEveryTokenOnce) {
  const Inputs inputs = Collected(*model_);
  EXPECT_EQ(inputs.size(), model_->slots().size());  // the embedding is the head, too
  size_t tokens = 0;
  for (const TokenDocument& sample : set_.samples) tokens += sample.size();
  for (const LinearSlot& slot : model_->slots()) {
    EXPECT_EQ(inputs.at(slot.name).size(), tokens * static_cast<size_t>(slot.shape[1]))
        << slot.name;
  }
}

// Equal bit for bit: kernels are batch-invariant, and what flows between layers is kept as it is.
TEST_F(CalibrateTest, TheWalkSeesWhatOnePassSees) {
  // A tied head, a head of its own, an encoder.
  for (const std::string& path :
       {Stories260k(), GoldenPath("models/llama3"), GoldenPath("models/bert_mean")}) {
    Open(path);
    Inputs inputs;
    std::vector<std::string> order;
    const LayerWalkSteps steps{.collectors = KeepInto(inputs),
                               .finish = [&](std::shared_ptr<const Model> model,
                                             const std::vector<const LinearSlot*>& slots)
                                   -> absl::StatusOr<std::shared_ptr<const Model>> {
                                 order.push_back(slots.front()->name);
                                 return model;
                               }};
    ASSERT_OK(WalkLayers(ResidentLayers(model_), run(), steps));
    EXPECT_EQ(inputs, Collected(*model_)) << path;
    const ModelSpec& spec = model_->spec();
    const bool head = spec.task == ModelTask::kGenerate;
    ASSERT_THAT(order, SizeIs(spec.layers + (head ? 1 : 0))) << path;
    if (head) {
      EXPECT_EQ(order.back(),
                spec.tied_head ? model_->slots().front().name : model_->slots().back().name);
    }
  }
}

TEST_F(CalibrateTest, QuantizedLayersFeedTheLayersAbove) {
  Inputs inputs;
  std::shared_ptr<const Model> last;
  const LayerWalkSteps steps{
      .collectors = KeepInto(inputs, "layers."),
      .finish = [&](std::shared_ptr<const Model> model, const std::vector<const LinearSlot*>& slots)
          -> absl::StatusOr<std::shared_ptr<const Model>> {
        ASSIGN_OR_RETURN(last, Requantized(*model, slots));
        return last;
      },
      .feed_quantized = true};
  ASSERT_OK(WalkLayers(ResidentLayers(model_), run(), steps));
  // The inputs of layer i are those that a model has whose layers below i are quantized and whose
  // own layer is not: for the first slot of a layer that is the fully quantized model.
  const Inputs quantized = Collected(*last), exact = Collected(*model_);
  for (const LinearSlot& slot : model_->slots()) {
    if (slot.layer < 0) continue;
    const bool first_of_layer = slot.name.find("qkv") != std::string::npos;
    if (slot.layer == 0) {
      EXPECT_EQ(inputs.at(slot.name), exact.at(slot.name)) << slot.name;
    } else if (first_of_layer) {
      EXPECT_EQ(inputs.at(slot.name), quantized.at(slot.name)) << slot.name;
      EXPECT_NE(inputs.at(slot.name), exact.at(slot.name)) << slot.name;
    }
  }
}

TEST_F(CalibrateTest, BothModelsGoUpSideBySide) {
  Inputs inputs, beside;
  std::shared_ptr<const Model> last;
  const LayerWalkSteps steps{
      .collectors = [&](const LinearSlot& slot) -> absl::StatusOr<InputCollector> {
        if (slot.layer < 0 || slot.layer == 1) return InputCollector();  // goes up unseen, too
        return InputCollector([&, name = slot.name](TensorView x, TensorView x_full) {
          EXPECT_TRUE(x.shape == x_full.shape) << name;
          inputs[name].insert(inputs[name].end(), x.as<float>(),
                              x.as<float>() + x.shape.elements());
          beside[name].insert(beside[name].end(), x_full.as<float>(),
                              x_full.as<float>() + x_full.shape.elements());
          return absl::OkStatus();
        });
      },
      .finish = [&](std::shared_ptr<const Model> model, const std::vector<const LinearSlot*>& slots)
          -> absl::StatusOr<std::shared_ptr<const Model>> {
        ASSIGN_OR_RETURN(last, Requantized(*model, slots));
        return last;
      },
      .feed_quantized = true,
      .both_inputs = true};
  ASSERT_OK(WalkLayers(ResidentLayers(model_), run(), steps));
  const Inputs quantized = Collected(*last), exact = Collected(*model_);
  for (const auto& [name, rows] : beside) EXPECT_EQ(rows, exact.at(name)) << name;
  EXPECT_EQ(inputs.at("model.layers.3.self_attn.qkv_proj"),
            quantized.at("model.layers.3.self_attn.qkv_proj"));
  EXPECT_NE(inputs.at("model.layers.3.self_attn.qkv_proj"),
            beside.at("model.layers.3.self_attn.qkv_proj"));
}

// What GPTAQ is for: the output on the inputs that the layer will have, against the original's on
// the inputs that it had.
TEST_F(CalibrateTest, TheAsymmetricCorrectionLowersTheOutputError) {
  std::map<std::string, double> error;  // by method, relative to the original's outputs
  StatisticsMap statistics;
  Inputs inputs, beside;
  const CollectorFactory collect = StatisticsInto(statistics, pool_, [](const LinearSlot& slot) {
    return slot.layer < 0 ? std::nullopt
                          : std::optional(InputStatisticsOptions{.hessian = true, .cross = true});
  });
  const LayerWalkSteps steps{
      .collectors = [&](const LinearSlot& slot) -> absl::StatusOr<InputCollector> {
        ASSIGN_OR_RETURN(const InputCollector add, collect(slot));
        if (!add) return InputCollector();
        return InputCollector([&, add, name = slot.name](TensorView x, TensorView x_full) {
          const auto count = static_cast<size_t>(x.shape.elements());
          inputs[name].insert(inputs[name].end(), x.as<float>(), x.as<float>() + count);
          beside[name].insert(beside[name].end(), x_full.as<float>(), x_full.as<float>() + count);
          return add(x, x_full);
        });
      },
      .finish = [&](std::shared_ptr<const Model> model, const std::vector<const LinearSlot*>& slots)
          -> absl::StatusOr<std::shared_ptr<const Model>> {
        LinearMap linears = model->linears();
        for (const LinearSlot* slot : slots) {
          ASSIGN_OR_RETURN(const Tensor weight, ReadSlotWeight(*checkpoint_, *slot));
          for (const std::string method : {"gptq:act_order,asym,rows=0", "gptq:act_order,rows=0"}) {
            ASSIGN_OR_RETURN(const Rounding* rounding, FindRounding(method));
            ASSIGN_OR_RETURN(
                const QuantizedTensor q,
                rounding->Quantize(weight.view(), *FindScheme("int4_group:g32,asym").value(),
                                   &statistics.at(slot->name), {&pool_}));
            error[method] += OutputDistance(weight, q, inputs[slot->name], beside[slot->name]);
            ASSIGN_OR_RETURN(QuantizedLinear linear, QuantizedLinear::Create(q, Tensor(), {}));
            linears[slot->name] = std::make_shared<const QuantizedLinear>(std::move(linear));
          }
        }
        ASSIGN_OR_RETURN(const ModelFamily* family, FamilyOf(*checkpoint_));
        ASSIGN_OR_RETURN(std::unique_ptr<const Model> next,
                         family->build(model->spec(), *checkpoint_, std::move(linears)));
        return std::shared_ptr<const Model>(std::move(next));
      },
      .feed_quantized = true,
      .both_inputs = true};
  ASSERT_OK(WalkLayers(ResidentLayers(model_), run(), steps));
  EXPECT_LT(error["gptq:act_order,asym,rows=0"], 0.99 * error["gptq:act_order,rows=0"]);
}

TEST_F(CalibrateTest, WithoutFeedingTheLayersAboveSeeTheReference) {
  Inputs inputs;
  const LayerWalkSteps steps{.collectors = KeepInto(inputs, "layers."),
                             .finish = [&](std::shared_ptr<const Model> model,
                                           const std::vector<const LinearSlot*>& slots) {
                               return Requantized(*model, slots);
                             }};
  ASSERT_OK(WalkLayers(ResidentLayers(model_), run(), steps));
  const Inputs exact = Collected(*model_);
  for (const auto& [name, rows] : inputs) EXPECT_EQ(rows, exact.at(name)) << name;
}

TEST_F(CalibrateTest, OnlyWantedSlotsAreSeen) {
  Inputs one, walked;
  ASSERT_OK(CollectInputs(*model_, run(), KeepInto(one, "layers.2.mlp.down_proj")));
  const Inputs all = Collected(*model_);
  ASSERT_THAT(one, SizeIs(1));
  EXPECT_EQ(one.begin()->second, all.at(one.begin()->first));
  std::vector<size_t> finished;
  const LayerWalkSteps steps{
      .collectors = KeepInto(walked, "down_proj"),
      .finish = [&](std::shared_ptr<const Model> model, const std::vector<const LinearSlot*>& slots)
          -> absl::StatusOr<std::shared_ptr<const Model>> {
        finished.push_back(slots.size());
        return model;
      }};
  ASSERT_OK(WalkLayers(ResidentLayers(model_), run(), steps));
  EXPECT_THAT(finished, ElementsAre(1, 1, 1, 1, 1));
  for (const auto& [name, rows] : walked) EXPECT_EQ(rows, all.at(name)) << name;
}

TEST_F(CalibrateTest, StatisticsAreThoseOfTheRows) {
  StatisticsMap statistics;
  const CollectorFactory factory = StatisticsInto(
      statistics, pool_, [](const LinearSlot& slot) -> std::optional<InputStatisticsOptions> {
        if (slot.layer != 1) return std::nullopt;
        return InputStatisticsOptions{.hessian = true};
      });
  ASSERT_OK(CollectInputs(*model_, run(), factory));
  EXPECT_THAT(statistics, SizeIs(4));
  const Inputs inputs = Collected(*model_);
  for (const auto& [name, found] : statistics) {
    const std::vector<float>& rows = inputs.at(name);
    const auto k = static_cast<size_t>(found.k());
    EXPECT_EQ(static_cast<size_t>(found.tokens()), rows.size() / k) << name;
    std::vector<float> largest(k);
    for (size_t i = 0; i < rows.size(); ++i) {
      largest[i % k] = std::max(largest[i % k], std::abs(rows[i]));
    }
    EXPECT_EQ(found.absmax(), largest) << name;
  }
}

TEST_F(CalibrateTest, ACollectorsErrorNamesTheSlot) {
  const CollectorFactory failing = [](const LinearSlot&) -> absl::StatusOr<InputCollector> {
    return InputCollector(
        [](TensorView, TensorView) { return absl::DataLossError("an input is NaN"); });
  };
  EXPECT_THAT(CollectInputs(*model_, run(), failing),
              StatusIs(StatusCode::kDataLoss,
                       HasSubstr("statistics of model.layers.0.self_attn.qkv_proj: an input")));
}

TEST_F(CalibrateTest, APartOfTheStackIsChecked) {
  ASSERT_OK_AND_ASSIGN(ModelPass pass,
                       ModelPass::Create(*model_, {.context = 4, .rows = 4, .out_rows = 4}, pool_));
  const std::vector<int32_t> tokens = {1, 2, 3};
  const ModelPass::Span span{0, 0, tokens};
  const auto status = [&](const LayerPart& part) {
    return pass.Forward(std::span(&span, 1), false, nullptr, &part).status();
  };
  EXPECT_THAT(status({.first = 1, .end = 2}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("stream between layers")));
  EXPECT_THAT(status({.first = 0, .end = 6}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("first=0 end=6 layers=5")));
  std::vector<float> stream(3 * 64);
  const MutableView wrong{reinterpret_cast<std::byte*>(stream.data()), Shape{2, 64}, DType::kF32,
                          &CpuDevice()};
  EXPECT_THAT(status({.first = 0, .end = 1, .stream = wrong}),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("f32 [3,64]")));
}

}  // namespace
}  // namespace assay
