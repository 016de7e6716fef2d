#include "quant/policy/policy.h"

#include <gtest/gtest.h>

#include <map>

#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;
using testing::SizeIs;
using testing::StartsWith;

constexpr uint64_t kGib = uint64_t{1} << 30;
constexpr uint64_t kSmolLm2 = uint64_t{135} * 1000 * 1000 * 4;

HardwareInfo Recorded(const std::string& name) {
  return HardwareFromJson(ReadGolden("hardware/" + name + ".json")).value();
}

// As seen by a binary without CUDA, or where nothing can be placed on a GPU.
HardwareInfo WithoutGpus(HardwareInfo hardware) {
  for (GpuInfo& gpu : hardware.gpus) gpu.unusable = "it serves another";
  return hardware;
}

struct Expectation {
  std::string hardware;
  std::string rule_with_cuda, scheme_with_cuda, activation_with_cuda;
  std::string rule_without_cuda;
};

class DecisionTableTest : public testing::TestWithParam<Expectation> {};

TEST_P(DecisionTableTest, ChoosesTheRuleOfTheHardware) {
  const Expectation& expected = GetParam();
  const HardwareInfo hardware = Recorded(expected.hardware);
  ASSERT_OK_AND_ASSIGN(const PolicyDecision with, Policy::Default().Choose(hardware, kSmolLm2));
  EXPECT_EQ(with.rule, expected.rule_with_cuda) << absl::StrJoin(with.trace, "\n");
  EXPECT_EQ(with.recipe.scheme, expected.scheme_with_cuda);
  EXPECT_EQ(with.recipe.activation_name, expected.activation_with_cuda);
  ASSERT_OK_AND_ASSIGN(const PolicyDecision without,
                       Policy::Default().Choose(WithoutGpus(hardware), kSmolLm2));
  EXPECT_EQ(without.rule, expected.rule_without_cuda) << absl::StrJoin(without.trace, "\n");
  EXPECT_EQ(without.device, "cpu");
  // Without VNNI, 16-bit integer activations and scales of groups are nearly as fast as 8-bit
  // activations and scales of channels.
  const bool avx2 = expected.rule_without_cuda == "cpu_avx2";
  EXPECT_EQ(without.recipe.scheme, avx2 ? "int8_group:g32" : "int8_channel");
  EXPECT_EQ(without.recipe.activation, avx2 ? ActivationMode::kA16 : ActivationMode::kA8Token);
}

// The decision table of the project, one row per recorded machine.
INSTANTIATE_TEST_SUITE_P(
    Recorded, DecisionTableTest,
    testing::Values(
        Expectation{"b200", "blackwell_datacenter", "fp8_e4m3", "fp8_token", "cpu_amx"},
        Expectation{"rtx5090", "blackwell_consumer", "int4_group", "a16", "cpu_vnni"},
        Expectation{"h100", "hopper", "fp8_e4m3", "fp8_token", "cpu_amx"},
        Expectation{"l40s", "ada_datacenter", "fp8_e4m3", "fp8_token", "cpu_vnni"},
        Expectation{"rtx4090", "ada_consumer", "int4_group", "a16", "cpu_vnni"},
        Expectation{"a100", "ampere_datacenter", "int8_channel", "a8_token", "cpu_avx2"},
        Expectation{"rtx3090", "ampere_consumer", "int4_group", "a16", "cpu_avx2"},
        Expectation{"t4", "turing", "int8_channel", "a8_token", "cpu_avx2"},
        Expectation{"v100", "cpu_avx2", "int8_group:g32", "a16", "cpu_avx2"},
        Expectation{"cpu_avx2", "cpu_avx2", "int8_group:g32", "a16", "cpu_avx2"},
        Expectation{"cpu_avx_vnni", "cpu_vnni", "int8_channel", "a8_token", "cpu_vnni"},
        Expectation{"cpu_avx512_vnni", "cpu_vnni", "int8_channel", "a8_token", "cpu_vnni"},
        Expectation{"cpu_amx", "cpu_amx", "int8_channel", "a8_token", "cpu_amx"},
        Expectation{"cpu_baseline", "cpu_any", "int8_channel", "a8_token", "cpu_any"}),
    [](const auto& info) { return info.param.hardware; });

TEST(PolicyTest, TakesFourBitsWhenEightDoNotFit) {
  HardwareInfo hardware = Recorded("h100");
  // 140 billion weights: 132 GiB at 8.1 bits, 69 GiB at 4.25; 90 % of one card is 71.7 GiB.
  ASSERT_OK_AND_ASSIGN(PolicyDecision decision,
                       Policy::Default().Choose(hardware, uint64_t{140} * 1000000000 * 4));
  EXPECT_EQ(decision.rule, "hopper_tight");
  EXPECT_THAT(decision.trace,
              Contains(AllOf(StartsWith("hopper: "), HasSubstr("bits per weight"))));
}

TEST(PolicyTest, TraceNamesTheConditionThatDidNotHoldForEveryRuleLookedAt) {
  ASSERT_OK_AND_ASSIGN(const PolicyDecision decision,
                       Policy::Default().Choose(Recorded("cpu_avx2"), kSmolLm2));
  const std::vector<std::string> rules = Policy::Default().rule_names();
  ASSERT_THAT(decision.trace, SizeIs(rules.size()));  // hardware, then all but cpu_any
  EXPECT_THAT(decision.trace[0], AllOf(HasSubstr("EPYC 7763"), HasSubstr("no GPU")));
  for (size_t i = 1; i < decision.trace.size(); ++i) {
    EXPECT_THAT(decision.trace[i], StartsWith(rules[i - 1] + ": "));
  }
  EXPECT_THAT(decision.trace[3], HasSubstr("no CUDA device here"));
  EXPECT_THAT(decision.trace, Contains("cpu_amx: CPU has avx2, the rule asks for amx"));
  EXPECT_THAT(decision.trace.back(),
              AllOf(HasSubstr("matched cpu"), HasSubstr(decision.reason), HasSubstr("int8")));
}

TEST(PolicyTest, SaysWhyAMatchingGpuCannotBeUsedAndTakesTheNext) {
  HardwareInfo hardware = Recorded("h100");
  hardware.gpus.resize(2);
  hardware.gpus[0].unusable = "it serves smollm2";
  ASSERT_OK_AND_ASSIGN(const PolicyDecision second, Policy::Default().Choose(hardware, kSmolLm2));
  EXPECT_EQ(second.device, "cuda:1");
  hardware.gpus[1].unusable = "illegal address";
  ASSERT_OK_AND_ASSIGN(const PolicyDecision none, Policy::Default().Choose(hardware, kSmolLm2));
  EXPECT_EQ(none.device, "cpu");
  EXPECT_THAT(none.trace, Contains(AllOf(StartsWith("hopper: would select recipe fp8 "),
                                         HasSubstr("on NVIDIA H100"), HasSubstr("cuda:0 cannot"),
                                         HasSubstr("it serves smollm2"), HasSubstr("cuda:1 cannot"),
                                         HasSubstr("illegal address"))));
}

TEST(PolicyTest, NoRuleIsNotFoundWithTheTrace) {
  EXPECT_THAT(
      Policy::Default().Choose(Recorded("cpu_avx2"), 100 * kGib),
      StatusIs(StatusCode::kNotFound, AllOf(HasSubstr("cpu_avx2: needs"), HasSubstr("25.02 GiB"))));
}

constexpr char kPolicy[] = R"(version: 1
recipes:
  int8:
    scheme: int8_channel
    activation: a8_token
    keep: [lm_head, "*.down_proj"]
    kv: f32
    fallback: {scheme: f32, activation: a16, max_fraction: 0.1}
budgets:
  tight: {mean_kl: 0.002, top1: 0.99, perplexity_ratio: 1.001, cosine: 0.999, label_agreement: 1}
rules:
  - name: big
    reason: many cores
    when: {device: cpu, cores: 16, memory_gib: 30}
    recipe: int8
    budget: tight
)";

TEST(PolicyTest, ReadsEveryField) {
  ASSERT_OK_AND_ASSIGN(const Policy policy, Policy::Parse(kPolicy, "mine.yaml"));
  EXPECT_EQ(policy.origin(), "mine.yaml");
  ASSERT_OK_AND_ASSIGN(const PolicyDecision decision, policy.Choose(Recorded("rtx3090"), kSmolLm2));
  EXPECT_EQ(decision.rule, "big");
  EXPECT_EQ(decision.reason, "many cores");
  const Recipe& recipe = decision.recipe;
  EXPECT_EQ(recipe.name, "int8");
  EXPECT_THAT(recipe.keep, testing::ElementsAre("lm_head", "*.down_proj"));
  EXPECT_EQ(recipe.kv_dtype, DType::kF32);
  EXPECT_EQ(recipe.fallback_scheme, "f32");
  EXPECT_EQ(recipe.max_fallback_fraction, 0.1);
  // One f32 scale per 4096 codes: 8 + 32 / 4096.
  EXPECT_NEAR(recipe.bits_per_weight, 8 + 32.0 / 4096, 1e-12);
  const Budget& budget = decision.budget;
  EXPECT_EQ(budget.max_mean_kl, 0.002);
  EXPECT_EQ(budget.min_top1, 0.99);
  EXPECT_EQ(budget.max_perplexity_ratio, 1.001);
  EXPECT_EQ(budget.min_mean_cosine, 0.999);
  EXPECT_EQ(budget.min_label_agreement, 1);
}

TEST(PolicyTest, ARuleMayNameALadder) {
  const std::string text = absl::StrReplaceAll(
      kPolicy, {{"recipes:\n", "recipes:\n  wide: {scheme: bf16, activation: a16}\n"},
                {"    recipe: int8\n", "    recipe: [int8, wide]\n    ladder_seconds: 60\n"}});
  ASSERT_OK_AND_ASSIGN(const Policy policy, Policy::Parse(text, "mine.yaml"));
  ASSERT_OK_AND_ASSIGN(const PolicyDecision decision, policy.Choose(Recorded("rtx3090"), kSmolLm2));
  EXPECT_EQ(decision.recipe.name, "int8");
  ASSERT_THAT(decision.ladder.rungs, SizeIs(2));
  EXPECT_EQ(decision.ladder.rungs[1].scheme, "bf16");
  EXPECT_EQ(decision.ladder.seconds, 60);
  EXPECT_THAT(decision.trace.back(),
              HasSubstr("recipe int8 (int8_channel, a8_token), else wide (bf16, a16)"));
}

// 24, 16 and 8 GiB for ten billion weights: 16 bit, INT8, NF4.
TEST(PolicyTest, TheExampleByMemoryChoosesWhatFits) {
  ASSERT_OK_AND_ASSIGN(const Policy policy,
                       Policy::Parse(ReadGolden("../../deploy/policy-by-memory.yaml"), "example"));
  constexpr uint64_t kTenBillion = uint64_t{10} * 1000 * 1000 * 1000 * 4;
  HardwareInfo hardware = Recorded("rtx3090");
  for (const auto& [gib, scheme] :
       std::map<uint64_t, std::string>{{24, "bf16"}, {16, "int8_channel"}, {8, "nf4:double"}}) {
    hardware.gpus[0].memory_bytes = gib * kGib;
    ASSERT_OK_AND_ASSIGN(const PolicyDecision decision, policy.Choose(hardware, kTenBillion));
    EXPECT_EQ(decision.recipe.scheme, scheme) << gib << " GiB";
  }
  hardware.gpus[0].memory_bytes = 20 * kGib;  // 20 GB do not fit in nine tenths of it
  ASSERT_OK_AND_ASSIGN(const PolicyDecision less, policy.Choose(hardware, kTenBillion));
  EXPECT_EQ(less.recipe.scheme, "int8_channel");
}

TEST(PolicyTest, IntegerActivationsGiveWayToWiderOnes) {
  for (const char* host : {"cpu_amx", "cpu_avx512_vnni", "cpu_avx_vnni", "cpu_baseline"}) {
    ASSERT_OK_AND_ASSIGN(const PolicyDecision decision,
                         Policy::Default().Choose(Recorded(host), kSmolLm2));
    ASSERT_THAT(decision.ladder.rungs, SizeIs(2)) << host;
    EXPECT_EQ(decision.ladder.rungs[0].activation, ActivationMode::kA8Token) << host;
    EXPECT_EQ(decision.ladder.rungs[1].scheme, "int8_group:g32") << host;
    EXPECT_EQ(decision.ladder.rungs[1].activation, ActivationMode::kA16) << host;
  }
}

TEST(PolicyTest, CoresAndMemoryAreConditions) {
  ASSERT_OK_AND_ASSIGN(const Policy policy, Policy::Parse(kPolicy, "mine.yaml"));
  HardwareInfo hardware = Recorded("rtx3090");
  hardware.cores = 15;
  EXPECT_THAT(policy.Choose(hardware, kSmolLm2),
              StatusIs(StatusCode::kNotFound, HasSubstr("cores=15 are fewer than 16")));
  hardware.cores = 16;
  hardware.memory_bytes = 29 * kGib;
  EXPECT_THAT(policy.Choose(hardware, kSmolLm2),
              StatusIs(StatusCode::kNotFound, HasSubstr("29.00 GiB is less than 30.00 GiB")));
}

struct BadPolicy {
  std::string from, to, message;
};

class BadPolicyTest : public testing::TestWithParam<BadPolicy> {};

TEST_P(BadPolicyTest, IsRefusedWithLineAndKey) {
  const BadPolicy& bad = GetParam();
  const std::string text = absl::StrReplaceAll(kPolicy, {{bad.from, bad.to}});
  ASSERT_NE(text, kPolicy);
  EXPECT_THAT(Policy::Parse(text, "mine.yaml"),
              StatusIs(StatusCode::kInvalidArgument,
                       AllOf(StartsWith("mine.yaml:"), HasSubstr(bad.message))));
}

INSTANTIATE_TEST_SUITE_P(
    All, BadPolicyTest,
    testing::Values(
        BadPolicy{"version: 1", "version: 2", "mine.yaml:1: expected policy format 1"},
        BadPolicy{"    kv: f32", "    kw: f32", "mine.yaml:7: unknown key: key=recipes.int8.kw"},
        BadPolicy{"    kv: f32", "    kv: f33", "mine.yaml:7: expected an element type"},
        BadPolicy{"scheme: int8_channel", "scheme: int9", "int9"},
        BadPolicy{"activation: a8_token", "activation: a9", "activation=a9"},
        BadPolicy{"max_fraction: 0.1", "max_fraction: 1.5",
                  "expected a number from 0 to 1: key=recipes.int8.fallback.max_fraction"},
        BadPolicy{"max_fraction: 0.1", "max_fraction: some", "value=some"},
        BadPolicy{"top1: 0.99", "top1: [1]", "mine.yaml:10: expected a single value"},
        BadPolicy{"keep: [lm_head, \"*.down_proj\"]", "keep: lm_head",
                  "mine.yaml:6: expected a list"},
        BadPolicy{"device: cpu,", "device: tpu,", "mine.yaml:14: expected cpu or cuda"},
        BadPolicy{"device: cpu,", "", "expected cpu or cuda: key=rules[0].when.device"},
        BadPolicy{"cores: 16", "cores: -1", "expected a whole number"},
        BadPolicy{"cores: 16", "core: 16", "unknown key: key=rules[0].when.core"},
        BadPolicy{"cores: 16", "gpu_memory_gib: 16", "a condition for device: cuda only"},
        BadPolicy{"    recipe: int8", "    recipe: int4", "no such name in this file"},
        BadPolicy{"    recipe: int8", "    recipe: [int8, int4]", "in this file: int4"},
        BadPolicy{"    recipe: int8", "    recipe: []", "missing: key=rules[0].recipe"},
        BadPolicy{"max_fraction: 0.1", "by: size", "expected kl or range: size"},
        BadPolicy{"max_fraction: 0.1", "disable_level: 10", "10"},
        BadPolicy{"    budget: tight\n", "", "missing: key=rules[0].budget"},
        BadPolicy{"    reason: many cores\n", "", "missing: key=rules[0].reason"},
        BadPolicy{"    recipe: int8", "    recipe: int8\n    recipe: int8", "key appears twice"},
        BadPolicy{"  tight: {", "  tight: 7 #", "must be a mapping"},
        BadPolicy{"rules:\n", "rules: []\nrulez:\n", "unknown key: key=rulez"},
        BadPolicy{"version: 1", "version: [", "not YAML"}));

TEST(PolicyTest, NoRulesAndNoMappingAreErrors) {
  EXPECT_THAT(Policy::Parse("version: 1\nrules: []\n", "p"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("at least one rule")));
  EXPECT_THAT(Policy::Parse("version: 1\n", "p"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("at least one rule")));
  EXPECT_THAT(Policy::Parse("", "p"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("must be a mapping")));
}

TEST(PolicyTest, TwoRulesOfOneNameAreAnError) {
  std::string text = kPolicy;
  text += text.substr(text.find("  - name: big"));
  EXPECT_THAT(Policy::Parse(text, "p"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("two rules of one name: name=big")));
}

TEST(PolicyTest, AGpuRuleMayNameAnUnknownSchemeOnlyWithItsBits) {
  const std::string gpu = absl::StrReplaceAll(
      kPolicy, {{"device: cpu", "device: cuda"}, {"scheme: int8_channel", "scheme: int3_magic"}});
  EXPECT_THAT(Policy::Parse(gpu, "p"),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("needs bits_per_weight")));
  EXPECT_OK(Policy::Parse(
      absl::StrReplaceAll(gpu, {{"    kv: f32", "    kv: f32\n    bits_per_weight: 3.1"}}), "p"));
}

TEST(PolicyTest, TruncatedAtEveryByteNeverCrashes) {
  const std::string text = kPolicy;
  for (size_t length = 0; length < text.size(); ++length) {
    (void)Policy::Parse(text.substr(0, length), "p");  // a prefix may be valid; it must not crash
  }
}

}  // namespace
}  // namespace assay
