#include "engine/lifecycle/report.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

VerificationResult ExampleVerification() {
  VerificationResult v;
  v.tokens = 4088;
  v.documents = 8;
  v.documents_in_set = 9;
  v.mean_kl = {0.00412, 0.00371, 0.00453};
  v.mean_kl_bootstrap = {0.00412, 0.00381, 0.00443};
  v.log_perplexity_ratio = {0.0017, 0.001, 0.0024};
  v.figures.positions = 4088;
  v.figures.mean_kl = {0.00412, 0.0001};
  v.figures.kl_quantiles[1] = 0.21;
  v.figures.delta_p_quantiles[12] = -0.3;
  v.top1_agreement = {0.971, 0.966, 0.976};
  v.kl_p999 = {0.21, 0.14, 0.33};
  v.kl_max = 0.54;
  v.perplexity_reference = 18.1;
  v.perplexity = 18.13;
  v.perplexity_ratio = 1.0017;
  v.decode_positions = 256;
  return v;
}

std::vector<LayerReport> ExampleLayers() {
  std::vector<LayerReport> layers;
  for (int i = 0; i < 30; ++i) {
    LayerReport layer;
    layer.name = absl::StrCat("model.layers.", i, ".mlp.down_proj");
    layer.scheme = i == 29 ? "bf16" : "int8_channel";
    layer.activation = "a8_token";
    layer.kernel = "avx2_int8";
    layer.n = 576;
    layer.k = 1536;
    layer.bytes = 886000;
    layer.bytes_f32 = 3538944;
    layer.bytes_stored = 500000;
    layer.weight_sqnr_db = 40.5;
    layer.output_sqnr_db = 30 + i;
    layer.fallback = i == 29;
    layer.why = i == 29 ? "adds 0.02710 nats when quantized" : "";
    layers.push_back(layer);
  }
  return layers;
}

AdmissionReport Example() {
  AdmissionReport report;
  report.model = "smollm2";
  report.version = 3;
  report.task = "generate";
  report.verdict = "admitted";
  report.reason = "int8_channel keeps to the budget: mean KL 0.00412 nats (limit 0.01)";
  report.source_path = "/models/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
  report.source_format = "gguf";
  report.source_hash = std::string(64, 'a');
  report.artifact_hash = std::string(64, 'b');
  report.hardware = ProbeHardware();
  report.hardware.cpu_isa = "avx512_vnni";  // the recipe below on any machine
  report.decision = Policy::Default().Choose(report.hardware, 540000000).value();
  report.bytes_stored = 100000000;
  report.bytes_f32 = 538060032;
  report.bytes = 139000000;
  report.estimated_peak_bytes = 900000000;
  report.measured_peak_bytes = 850000000;
  report.fallback_fraction = 1.0 / 120;
  report.evaluation_set = "wikitext2-extract, 512 tokens each";
  report.evaluation_hash = std::string(64, 'c');
  report.verification = ExampleVerification();
  report.slices = {{"long context: 2 windows of 2048 tokens", report.verification}};
  report.attempts.push_back(report.verification);
  report.attempts[0].mean_kl.mean = 0.0312;
  report.attempts[0].failures = {"mean KL 0.0312 > 0.01"};
  report.layers = ExampleLayers();
  report.labelled_set = "mine.jsonl, 3 items";
  report.tasks = {{"accuracy", 0.9, 0.895}};
  report.candidates = {
      {.name = "predicted", .bytes = 90'000'000, .loss = {0.01, 0.01, 0.01}, .predicted = true},
      {.name = "plan 1", .bytes = 91'000'000, .loss = {0.02, 0.01, 0.03}, .why = "mean KL"},
      {.name = "plan 2",
       .bytes = 99'000'000,
       .loss = {0.004, 0.003, 0.005},
       .seconds = 0.01,
       .chosen = true}};
  report.stages = {{"open", absl::Milliseconds(12), "272 tensors"},
                   {"verify", absl::Seconds(14.2), "two passes over a text long enough to wrap"}};
  report.assay_version = "0.1.0";
  return report;
}

TEST(ReportTest, SurvivesARoundTripThroughJson) {
  const nlohmann::json before = ToJson(Example());
  ASSERT_OK_AND_ASSIGN(const AdmissionReport report,
                       ReportFromJson(nlohmann::json::parse(before.dump())));
  EXPECT_EQ(ToJson(report), before);
  EXPECT_EQ(report.decision.recipe.activation, ActivationMode::kA8Token);
}

// A rotation, a branch, channels of keys: in the JSON, on the terminal, on the page.
TEST(ReportTest, WhatStandsBesideTheCodesIsSaid) {
  AdmissionReport report = Example();
  Recipe& recipe = report.decision.recipe;
  recipe.rotate_inputs = {"*.down_proj"};
  recipe.low_rank = 16;
  recipe.kv_dtype = DType::kI8;
  recipe.kv_key_channels = recipe.int8_scores = true;
  recipe.kv_window = 64;
  recipe.kv_sinks = 4;
  LayerReport& layer = report.layers.front();
  layer.rotates_input = layer.key_channels = layer.int8_scores = true;
  layer.low_rank = 16;
  const nlohmann::json json = ToJson(report);
  ASSERT_OK_AND_ASSIGN(const AdmissionReport read, ReportFromJson(json));
  EXPECT_EQ(ToJson(read), json);
  EXPECT_EQ(BesideTheCodes(read.layers[0]),
            "rotated input, branch of rank 16, channels of keys, INT8 scores");
  EXPECT_EQ(BesideTheCodes(read.layers[1]), "");
  const std::string text = ToTerminalText(read, 500);
  EXPECT_THAT(text, HasSubstr("inputs of *.down_proj rotated, beside it a branch of rank 16"));
  EXPECT_THAT(text, HasSubstr("KV cache i8 with channels of keys multiplied in INT8"));
  EXPECT_THAT(text, HasSubstr("with rotated input, branch of rank 16, channels of keys"));
  const std::string page = ToHtml(read);
  for (const char* word : {"'rotated input'", "`branch of rank ", "'channels of keys'",
                           "'INT8 scores'", "recipe.rotate_inputs", "recipe.kv_keys"})
    EXPECT_THAT(page, HasSubstr(word));
}

TEST(ReportTest, NanBecomesNullAndBack) {
  AdmissionReport report = Example();
  report.verification.perplexity = std::numeric_limits<double>::quiet_NaN();
  const std::string text = ToJson(report).dump();
  EXPECT_THAT(text, HasSubstr("\"perplexity\":null"));
  ASSERT_OK_AND_ASSIGN(const AdmissionReport read, ReportFromJson(nlohmann::json::parse(text)));
  EXPECT_NE(read.verification.perplexity, read.verification.perplexity);
}

TEST(ReportTest, MissingKeysAndWrongTypesAreDataLossAndNamed) {
  const nlohmann::json good = ToJson(Example());
  for (const auto& [key, value] : good.items()) {
    nlohmann::json bad = good;
    bad.erase(key);
    EXPECT_THAT(ReportFromJson(bad), StatusIs(StatusCode::kDataLoss, HasSubstr(key)));
    bad = good;
    bad[key] = nlohmann::json::array({nlohmann::json::array()});
    EXPECT_THAT(ReportFromJson(bad), StatusIs(StatusCode::kDataLoss, HasSubstr(key)));
  }
  nlohmann::json bad = good;
  bad["layers"][2].erase("kernel");
  EXPECT_THAT(ReportFromJson(bad), StatusIs(StatusCode::kDataLoss, HasSubstr("layers[2].kernel")));
  bad = good;
  bad["verification"]["mean_kl"]["low"] = "x";
  EXPECT_THAT(ReportFromJson(bad),
              StatusIs(StatusCode::kDataLoss, HasSubstr("verification.mean_kl.low")));
  bad = good;
  bad["schema"] = 1;
  EXPECT_THAT(ReportFromJson(bad), StatusIs(StatusCode::kDataLoss, HasSubstr("schema")));
  EXPECT_THAT(ReportFromJson(nlohmann::json(3)), StatusIs(StatusCode::kDataLoss));
}

// The data of a page, between the tags of its script element.
nlohmann::json DataOf(const std::string& page) {
  const std::string begin = "<script type=\"application/json\" id=\"report\">";
  const size_t from = page.find(begin) + begin.size();
  return nlohmann::json::parse(page.substr(from, page.find("</script", from) - from));
}

TEST(ReportTest, ThePageHoldsTheWholeReportAndNothingFromOutside) {
  const std::string page = ToHtml(Example());
  EXPECT_EQ(DataOf(page), ToJson(Example()));
  EXPECT_THAT(page, Not(HasSubstr("{{REPORT}}")));
  for (const char* outside : {"src=", "href=", "@import", "url(", "fetch(", "XMLHttp"}) {
    EXPECT_THAT(page, Not(HasSubstr(outside)));
  }
}

TEST(ReportTest, NamesOfACheckpointCannotBecomeMarkupOfThePage) {
  AdmissionReport report = Example();
  report.model = "</script><script>alert(1)</script>{{REPORT}}";
  report.layers[0].name = "bad \xff utf-8 <!--";
  const std::string page = ToHtml(report);
  EXPECT_EQ(DataOf(page)["model"], report.model);
  EXPECT_THAT(page, Not(HasSubstr("alert(1)</script>")));
  EXPECT_THAT(page, Not(HasSubstr("<!--")));
}

TEST(ReportTest, TerminalTextBeginsWithTheVerdictAndKeepsToItsColumns) {
  for (const int columns : {80, 100, 140}) {
    const std::string text = ToTerminalText(Example(), columns);
    EXPECT_THAT(text, StartsWith("smollm2 version 3: ADMITTED\n"));
    for (const absl::string_view line : absl::StrSplit(text, '\n')) {
      EXPECT_LE(line.size(), static_cast<size_t>(columns)) << line;
    }
  }
}

TEST(ReportTest, TerminalTextShowsFiguresFallbackAndWhatItLeftOut) {
  const std::string text = ToTerminalText(Example(), 100);
  EXPECT_THAT(text, AllOf(HasSubstr("mean KL (nats)"), HasSubstr("0.00412"), HasSubstr("ok"),
                          HasSubstr("layers.29.mlp.down_proj"), HasSubstr("kept: adds 0.02710"),
                          HasSubstr("19 more"), HasSubstr("(25.8 %)")));
  EXPECT_THAT(text, HasSubstr("100.0 MB stored ("));
  EXPECT_THAT(text, Not(HasSubstr("NOT MET")));
}

TEST(ReportTest, TerminalTextShowsTheUsersOwnTask) {
  AdmissionReport report = Example();
  report.tasks.push_back({"f1_macro", 0.8, 0.7});
  const std::string text = ToTerminalText(report, 100);
  EXPECT_THAT(text, HasSubstr("mine.jsonl"));
  EXPECT_THAT(text, testing::ContainsRegex("accuracy +0.895 +reference 0.9 +limit 99 % of it  ok"));
  EXPECT_THAT(text, testing::ContainsRegex("f1_macro +0.7 +reference 0.8 .* NOT MET"));
}

TEST(ReportTest, TerminalTextShowsThePlansOfASearch) {
  const std::string text = ToTerminalText(Example(), 100);
  EXPECT_THAT(text,
              AllOf(HasSubstr("1 points of the frontier"), HasSubstr("plan 1"),
                    HasSubstr(" * plan 2"), HasSubstr("99.0 MB"), Not(HasSubstr("  predicted "))));
}

TEST(ReportTest, TerminalTextOfARejectionNamesTheDefectFirst) {
  AdmissionReport report = Example();
  report.verdict = "rejected";
  report.reason = "defect in model.layers.4.mlp.down_proj: scales do not fit the checkpoint";
  report.verification.defects = {report.reason};
  report.verification.mean_kl = {0.5, 0.4, 0.6};
  report.verification.failures = {"mean KL 0.5 > 0.01"};
  const std::string text = ToTerminalText(report, 80);
  EXPECT_THAT(text, StartsWith("smollm2 version 3: REJECTED\n  defect in model.layers.4.mlp"));
  EXPECT_THAT(text, AllOf(HasSubstr("NOT MET"), HasSubstr("DEFECT")));
}

}  // namespace
}  // namespace assay
