// GPTQ, clipping, AWQ and the smoothing transforms, each against the numbers of the tool itself
// (tests/golden/methods/make_tools.py: llm-compressor, AutoGPTQ, GPTQModel, AutoAWQ, msModelSlim).
// methods.json's goldens, computed in f64 from the published algorithms, cover options and grids
// that no tool has.
#include "tests/quant/methods/tools_golden.h"

#include <gtest/gtest.h>

#include "quant/methods/clip_search.h"
#include "quant/methods/output_error.h"
#include "quant/methods/transforms.h"

namespace assay {
namespace {

const QuantScheme& SchemeOf(std::string_view spelling) { return *FindScheme(spelling).value(); }

// --- GPTQ ---

std::vector<uint8_t> Nibbles(const QuantizedTensor& q) {
  std::vector<uint8_t> codes;
  for (size_t i = 0; i < q.codes.bytes(); ++i) {
    codes.push_back(q.codes.data<uint8_t>()[i] & 15);
    codes.push_back(q.codes.data<uint8_t>()[i] >> 4);
  }
  return codes;
}

struct GptqRun {
  std::string grid = "full", rounding = "gptq";
  QuantizedTensor Quantize() const {
    const nlohmann::json& golden = Tools().json["gptq"];
    const Tensor w =
        TensorOf({golden["n"].get<int64_t>(), Tools().k}, FromBase64<float>(golden[grid.c_str()]));
    const InputStatistics input = Golden().Statistics({.cross = true});
    return FindRounding(rounding)
        .value()
        ->Quantize(w.view(), SchemeOf("int4_group:g32," + grid), &input, {})
        .value();
  }
};

// Every code. The tools compute in f32, we in f64: a column's value would have to lie within 1e-6
// of the middle between two codes, and among 2048 none does. Symmetric (absmax / 7.5) and
// asymmetric grids; the scales of these weights are exact in bf16.
TEST(ToolsGptqTest, EqualsLlmCompressor) {
  int64_t compared = 0;
  for (const auto& [name, codes] : Tools().json["gptq"]["llmcompressor"].items()) {
    SCOPED_TRACE(name);
    const size_t space = name.find(' ');
    const std::string grid = name.substr(name.find(',') + 1, space - name.find(',') - 1);
    const QuantizedTensor q = GptqRun{grid, name.substr(space + 1)}.Quantize();
    EXPECT_EQ(CountDifferences(Nibbles(q), FromBase64<uint8_t>(codes)), 0);
    ++compared;
  }
  EXPECT_EQ(compared, 6);
}

// The packaged reference code. "gptq" fits a group when it is entered: its scales depend on all the
// updates before, and AutoGPTQ's f32 ones are rounded to the bf16 that we store: one of the 64 lies
// 7e-7 of itself from the middle between two and may go either way.
TEST(ToolsGptqTest, EqualsAutoGptq) {
  for (const char* rounding : {"gptq", "gptq:static_groups", "gptq:act_order"}) {
    SCOPED_TRACE(rounding);
    const QuantizedTensor q = GptqRun{"full", rounding}.Quantize();
    const nlohmann::json& expected = Tools().json["gptq"]["auto_gptq"][rounding];
    EXPECT_EQ(CountDifferences(Nibbles(q), FromBase64<uint8_t>(expected["codes"])), 0);
    std::vector<float> scales;
    for (int64_t i = 0; i < q.scales.shape().elements(); ++i)
      scales.push_back(Bf16ToF32(q.scales.data<uint16_t>()[i]));
    const auto theirs = FromBase64<float>(expected["scales"]);
    EXPECT_LE(CountDifferences(scales, theirs), 1);
    EXPECT_LE(LargestRelative(scales, theirs), 0x1p-7);
  }
}

// Where a block holds several groups the reference code (and GPTQModel 7.7) fits a group to weights
// that lack the block's own updates: its W, not its W1. Ours is fitted to the weight that will be
// rounded, so that the block changes nothing, as lazy updates are meant to. Neither is better
// by itself: the output errors of this layer are 1.5 % apart, theirs the smaller.
TEST(ToolsGptqTest, DoesNotFitGroupsToStaleWeights) {
  const nlohmann::json& stale = Tools().json["gptq"]["auto_gptq"]["stale"];
  const QuantizedTensor ours = GptqRun{}.Quantize();
  const auto codes = FromBase64<uint8_t>(stale["codes"]);
  EXPECT_GT(CountDifferences(Nibbles(ours), codes), 20);
  EXPECT_EQ(CountDifferences(Nibbles(ours), Nibbles(GptqRun{"full", "gptq:block=32"}.Quantize())),
            0);
  const auto w = FromBase64<float>(Tools().json["gptq"]["full"]),
             scales = FromBase64<float>(stale["scales"]);
  std::vector<float> difference = Decoded(ours), theirs(w.size());
  for (size_t i = 0; i < w.size(); ++i) {
    difference[i] -= w[i];
    theirs[i] = (static_cast<float>(codes[i]) - 8) * scales[i / 32] - w[i];
  }
  const InputStatistics input = Golden().Statistics();
  ASSERT_OK_AND_ASSIGN(const OutputError error, OutputError::Create(input));
  const double ours_error = error.Sum(difference, nullptr);
  EXPECT_NEAR(ours_error, error.Sum(theirs, nullptr), 0.05 * ours_error);
}

// GPTAQ, which also makes up for the error of the layer's input. In one block: behind a block the
// reference adds the correction of the rounded columns (its W1 holds them by then), inside it that
// of the columns as they were, so that its result depends on the block. Ours is the latter
// everywhere.
TEST(ToolsGptqTest, EqualsGptqModelsGptaq) {
  const nlohmann::json& golden = Tools().json["gptq"]["gptaq"];
  for (const std::string options : {"static_groups,asym", "act_order,asym"}) {
    SCOPED_TRACE(options);
    const std::vector<uint8_t> ours = Nibbles(GptqRun{"full", "gptq:" + options}.Quantize());
    EXPECT_EQ(CountDifferences(ours, FromBase64<uint8_t>(golden[options])), 0);
    EXPECT_EQ(
        CountDifferences(ours, Nibbles(GptqRun{"full", "gptq:block=32," + options}.Quantize())), 0);
    const std::vector<uint8_t> without =
        Nibbles(GptqRun{"full", "gptq:" + options.substr(0, options.find(','))}.Quantize());
    EXPECT_GT(CountDifferences(without, FromBase64<uint8_t>(golden[options])), 5);
  }
  const auto blocks = FromBase64<uint8_t>(golden["blocks"]);
  EXPECT_GT(CountDifferences(blocks, FromBase64<uint8_t>(golden["static_groups,asym"])), 0);
}

TEST(ToolsGptqTest, SeesAnotherDampingAndAnotherOrder) {
  const nlohmann::json& golden = Tools().json["gptq"]["llmcompressor"];
  const auto expected = FromBase64<uint8_t>(golden["int4_group:g32,asym gptq:act_order"]);
  for (const char* wrong : {"gptq:act_order,damp=0.02", "gptq:static_groups", "nearest"}) {
    EXPECT_GT(CountDifferences(Nibbles(GptqRun{"asym", wrong}.Quantize()), expected), 5) << wrong;
  }
}

// --- AWQ ---

InputStatistics AwqInput() { return Golden().Statistics({.hessian = true}); }

ScaleChoice OurAwq(const std::string& scheme, bool duo) {
  const std::array<Tensor, 2> linears = Tools().TwoLinears();
  const InputStatistics input = AwqInput();
  const SharedInput group{{linears[0].view(), linears[1].view()}, &input, {}};
  return AwqScales(group, {.scheme = &SchemeOf(scheme), .duo = duo}).value();
}

// AutoAWQ keeps scales in f32, as int8_channel does: the same ratio and scales. Its loss is the
// mean of squared differences of two f32 products: 2^-22 of outputs near 1, against differences
// near 5e-3.
TEST(ToolsAwqTest, EqualsAutoAwqOnTheSameGrid) {
  const nlohmann::json& golden = Tools().json["awq"]["int8_channel"];
  for (const bool duo : {false, true}) {
    const nlohmann::json& expected = golden[duo ? "duo" : "plain"];
    const ScaleChoice choice = OurAwq("int8_channel", duo);
    const std::vector<double> losses = expected["losses"];
    const auto best = std::min_element(losses.begin(), losses.end());
    EXPECT_DOUBLE_EQ(choice.alpha, static_cast<double>(best - losses.begin()) / 20);
    EXPECT_LT(LargestRelative(choice.scales, FromBase64<float>(expected["scales"])), 1e-5);
    EXPECT_NEAR(choice.error / static_cast<double>(Tools().n), *best, 1e-3 * *best);
  }
}

// Our 4-bit scales are bf16: off by at most 2^-9, which moves a value by at most 7 * 2^-9 of a step
// (rms 0.0034 beside the rounding's 0.29) and the loss by at most twice that quotient, 2.4 %. So
// AutoAWQ's loss of the ratio that we choose is at most 3 % above its best, and ours is as near.
TEST(ToolsAwqTest, AgreesWithAutoAwqOnFourBits) {
  for (const std::string scheme : {"int4_group:g32", "int4_group:g32,asym"}) {
    for (const bool duo : {false, true}) {
      SCOPED_TRACE(scheme);
      const ScaleChoice choice = OurAwq(scheme, duo);
      const std::vector<double> losses =
          Tools().json["awq"][scheme][duo ? "duo" : "plain"]["losses"];
      const double theirs = losses[static_cast<size_t>(std::lround(20 * choice.alpha))];
      EXPECT_LE(theirs, 1.03 * *std::min_element(losses.begin(), losses.end()));
      EXPECT_NEAR(choice.error / static_cast<double>(Tools().n), theirs, 0.03 * theirs);
    }
  }
}

TEST(ToolsAwqTest, SeesTheOtherScalingAndASwappedChannel) {
  const nlohmann::json& golden = Tools().json["awq"]["int8_channel"];
  const auto duo = FromBase64<float>(golden["duo"]["scales"]);
  EXPECT_GT(LargestRelative(OurAwq("int8_channel", false).scales, duo), 0.1);
  std::vector<float> swapped = OurAwq("int8_channel", true).scales;
  std::swap(swapped[3], swapped[4]);
  EXPECT_GT(LargestRelative(swapped, duo), 0.01);
}

// The part of each range [n, groups] that is kept.
struct Clips {
  std::string scheme;
  std::vector<float> w = Tools().weights;
  const char* golden = "clip";

  Tensor Weight() const { return TensorOf({Tools().n, Tools().k}, w); }
  std::vector<float> Ours() const {
    const InputStatistics input = AwqInput();
    const Tensor weight = Weight();
    return SearchShrink(weight.view(), SchemeOf(scheme), &input,
                        {ClipSearch::Error::kOutput, 2, 20, 0.5, nullptr})
        .value();
  }
  std::vector<float> AutoAwqs() const {
    return FromBase64<float>(Tools().json["awq"][scheme][golden]);
  }
  // Of w on the grid that these clips give.
  double Error(const std::vector<float>& shrink) const {
    const Tensor weight = Weight();
    QuantizedTensor grid = SchemeOf(scheme).Fit(weight.view(), {.shrink = shrink}).value();
    return Error(SchemeOf(scheme).EncodeOn(weight.view(), std::move(grid)).value());
  }
  // Sum over outputs and groups of the squared error of the group's part of the output.
  double Error(const QuantizedTensor& q) const {
    const std::vector<float> decoded = Decoded(q);
    const std::vector<double> h = AwqInput().Hessian<double>();
    const int64_t k = Tools().k, group = SchemeOf(scheme).group(q.shape);
    double error = 0;
    for (int64_t at = 0; at < q.shape.elements(); ++at) {
      const int64_t row = at / k * k, i = at % k, first = i / group * group;
      for (int64_t j = first; j < first + group; ++j)
        error += (w[at] - decoded[at]) * h[i * k + j] * (w[row + j] - decoded[row + j]);
    }
    return error;
  }
};

// On the same grid (f32 scales) the same clips. Column 17 has rows' largest weights and an input of
// 0: how far to clip is told by the rest. Errors of two clips within f32's rounding of each other
// may take either: 2 rows of 64 at most.
TEST(ToolsAwqTest, ClipsAsAutoAwqOnTheSameGrid) {
  Clips clips{"int8_channel", Tools().weights, "clip_outliers"};
  const int64_t k = Tools().k;
  for (int64_t row = 0; row < Tools().n; ++row) {
    float most = 0;
    clips.w[row * k + 17] = 0;
    for (int64_t j = 0; j < k; ++j) most = std::max(most, std::fabs(clips.w[row * k + j]));
    clips.w[row * k + 17] = most * (1 + static_cast<float>(row) / static_cast<float>(Tools().n));
  }
  const std::vector<float> ours = clips.Ours(), theirs = clips.AutoAwqs();
  int64_t different = 0, clipped = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    different += std::fabs(ours[i] - theirs[i]) > 1e-5f;
    clipped += ours[i] < 1;
  }
  EXPECT_LE(different, 2);
  EXPECT_GT(clipped, 50);
}

// With bf16 scales the errors differ as above, so the least may be at another clip: AutoAWQ's clips
// on our grid cost at most 3 % more than ours. Those of the next group cost more than that.
TEST(ToolsAwqTest, ClipsAsAutoAwqOnFourBits) {
  const Clips clips{"int4_group:g32"};
  std::vector<float> theirs = clips.AutoAwqs();
  const double least = clips.Error(clips.Ours());
  EXPECT_LE(clips.Error(theirs), 1.03 * least);
  EXPECT_LE(least, clips.Error(theirs));  // the least of the same clips
  std::rotate(theirs.begin(), theirs.begin() + 1, theirs.end());
  EXPECT_GT(clips.Error(theirs), 1.1 * least);
}

// Asymmetric ranges are clipped in two ways: AutoAWQ cuts both ends at one magnitude, so that the
// shorter end often stays; ours keeps one part of both ends, as llm-compressor's observers do. On
// this layer ours has the smaller error (6.5 %).
TEST(ToolsAwqTest, AsymmetricClipsAreNotWorseThanAutoAwqs) {
  const Clips clips{"int4_group:g32,asym"};
  const std::vector<float> part = clips.AutoAwqs();
  std::vector<float> cut = clips.w;
  for (size_t group = 0; group < part.size(); ++group) {
    const std::span<float> values = std::span(cut).subspan(group * 32, 32);
    float most = 0;
    for (const float v : values) most = std::max(most, std::fabs(v));
    for (float& v : values) v = std::clamp(v, -part[group] * most, part[group] * most);
  }
  const Tensor weight = TensorOf({Tools().n, Tools().k}, cut);
  EXPECT_LT(clips.Error(clips.Ours()),
            clips.Error(SchemeOf(clips.scheme).Encode(weight.view()).value()));
}

// "mse" is llm-compressor's observer without its patience (it stops where five steps in a row
// improve no group of the whole weight). Scales are bf16 here: the clips on our grid cost at most 3
// % more than ours, as above; those of the next group cost more than that.
TEST(ToolsClipTest, ShrinksAsLlmCompressorsMseObserver) {
  const QuantScheme& scheme = SchemeOf("int4_group:g32,full");
  const Tensor& w = Tools().w;
  const auto error = [&](const std::vector<float>& shrink) {
    QuantizedTensor grid = scheme.Fit(w.view(), {.shrink = shrink}).value();
    const std::vector<float> decoded = Decoded(scheme.EncodeOn(w.view(), std::move(grid)).value());
    double sum = 0;
    for (size_t i = 0; i < decoded.size(); ++i)
      sum += std::pow(std::fabs(decoded[i] - Tools().weights[i]), 2.4);
    return sum;
  };
  ASSERT_OK_AND_ASSIGN(const std::vector<float> ours, SearchShrink(w.view(), scheme, nullptr, {}));
  std::vector<float> theirs = FromBase64<float>(Tools().json["mse"]);
  EXPECT_LE(error(theirs), 1.03 * error(ours));
  EXPECT_LE(error(ours), error(theirs));
  // The same step or a neighbour.
  for (size_t i = 0; i < ours.size(); ++i) EXPECT_NEAR(ours[i], theirs[i], 0.011) << i;
  std::rotate(theirs.begin(), theirs.begin() + 1, theirs.end());
  EXPECT_GT(error(theirs), 1.03 * error(ours));
}

// --- smoothing ---

// pow in f32 there, in f64 here.
constexpr double kPowers = 2e-6;

std::vector<float> OurSmoothing(double alpha, const std::vector<float>& factors = {},
                                std::span<const int32_t> producer = {}) {
  const std::array<Tensor, 2> linears = Tools().TwoLinears(factors);
  const InputStatistics input = StatisticsOf(GoldenInput(true), Tools().k);
  return SmoothQuantScales({{linears[0].view(), linears[1].view()}, &input, producer}, alpha)
      .value();
}
// msModelSlim's layer: column j divided by 1 + j % 5.
std::vector<float> Factors() {
  std::vector<float> factors;
  for (int64_t j = 0; j < Tools().k; ++j) factors.push_back(static_cast<float>(1 + j % 5));
  return factors;
}

// llm-compressor takes (max - min) of a channel over twice the weight's absmax where the paper and
// its code take absmax over absmax: the same on an input that is its own mirror image.
TEST(ToolsSmoothTest, EqualsLlmCompressorOnAMirroredInput) {
  const auto mirrored = FromBase64<float>(Tools().json["llmcompressor_smoothquant"]);
  EXPECT_LT(LargestRelative(OurSmoothing(0.5), mirrored), kPowers);
  EXPECT_GT(LargestRelative(OurSmoothing(0.6), mirrored), 0.01);
  const auto range = FromBase64<float>(Tools().json["llmcompressor_smoothquant_range"]);
  EXPECT_GT(LargestRelative(OurSmoothing(0.5), range), 0.01);
}

TEST(ToolsSmoothTest, EqualsMsModelSlimsScales) {
  const nlohmann::json& golden = Tools().json["msmodelslim"];
  const auto smooth = FromBase64<float>(golden["smooth_quant"]),
             iterative = FromBase64<float>(golden["iter_smooth"]);
  EXPECT_LT(LargestRelative(OurSmoothing(0.5, Factors()), smooth), kPowers);
  EXPECT_LT(LargestRelative(OurSmoothing(0.9, Factors()), iterative), kPowers);
  EXPECT_GT(LargestRelative(OurSmoothing(0.5), smooth), 0.1);
}

// Query heads that share a head of values share scales: the largest statistics of all (its method
// "max"). 8 query heads of 16 channels on 4 heads of values.
TEST(ToolsSmoothTest, SharesScalesAmongQueryHeadsAsMsModelSlim) {
  std::vector<int32_t> producer, wrong;
  for (int32_t j = 0; j < Tools().k; ++j) {
    producer.push_back(j / 32 * 16 + j % 16);
    wrong.push_back(j % 64);  // heads dealt in turns
  }
  const auto expected = FromBase64<float>(Tools().json["msmodelslim"]["grouped_queries"]);
  EXPECT_LT(LargestRelative(OurSmoothing(0.7, Factors(), producer), expected), kPowers);
  EXPECT_GT(LargestRelative(OurSmoothing(0.7, Factors(), wrong), expected), 0.01);
}

ScaleChoice OurFlex(ActivationScope scope) {
  const std::array<Tensor, 2> linears = Tools().TwoLinears(Factors());
  const InputStatistics input =
      StatisticsOf(GoldenInput(true), Tools().k, {.sample_rows = Golden().tokens});
  return FlexSmooth({{linears[0].view(), linears[1].view()}, &input, {}},
                    {.scope = scope, .allow_plain = false})
      .value();
}

// Both of its searches: int8 rows of x (flex_smooth_quant's own choice, act_sym) and one asymmetric
// grid. The same exponents; errors differ where f32 breaks a tie: 1e-3.
TEST(ToolsSmoothTest, FlexSmoothFindsMsModelSlimsExponents) {
  const nlohmann::json& golden = Tools().json["msmodelslim"];
  for (const auto& [name, scope] : {std::pair{"token", ActivationScope::kToken},
                                    std::pair{"tensor", ActivationScope::kTensor}}) {
    SCOPED_TRACE(name);
    const ScaleChoice choice = OurFlex(scope);
    EXPECT_NEAR(choice.alpha, golden[name]["alpha"], 1e-9);
    EXPECT_NEAR(choice.beta, golden[name]["beta"], 1e-9);
    EXPECT_NEAR(choice.error, golden[name]["error"], 1e-3 * golden[name]["error"].get<double>());
  }
  const auto scales = FromBase64<float>(golden["flex_smooth"]);
  EXPECT_LT(LargestRelative(OurFlex(ActivationScope::kToken).scales, scales), kPowers);
  EXPECT_GT(LargestRelative(OurFlex(ActivationScope::kTensor).scales, scales), 0.01);
}

}  // namespace
}  // namespace assay
