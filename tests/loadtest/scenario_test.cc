#include "loadtest/scenario.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "tests/support/status_matchers.h"

namespace assay::load {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr char kSound[] = R"(name: all of it
protocol: oip
seed: 5
channels: 2
timeout: 30s
max_lateness: 5ms
max_open: 100
slo: {ttft: 200ms, itl: 50ms, e2e: 2s}
requests:
  - {name: chat, call: generate, model: m, weight: 3, prompt_words: {median: 16, sigma: 0.5, most: 80}, answer_tokens: {least: 4, most: 9}, cancel_after: 3, deadline: 1s, reader_delay: 1s}
  - {name: image, call: embed, model: n, input: {name: x, datatype: FP32, shape: [1, 3, 8, 8]}}
  - {name: ping, call: live}
phases:
  - {name: a, seconds: 3, arrivals: {closed: 4}, warm_up: true}
  - {name: b, seconds: 4.5, arrivals: {poisson: 2x}, drain: true}
  - {name: c, seconds: 4, arrivals: {burst: {rate: 1, peak: 10, every: 2s, length: 500ms}}}
)";

absl::StatusOr<Scenario> Parse(const std::string& text) {
  return ParseScenario(text, "s.yaml", ".");
}

// kSound with the first `from` replaced.
absl::StatusOr<Scenario> ParseWith(const std::string& from, const std::string& to) {
  std::string text = kSound;
  const size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return Parse(text.replace(at, from.size(), to));
}

TEST(ScenarioTest, ReadsEveryKey) {
  ASSERT_OK_AND_ASSIGN(const Scenario scenario, Parse(kSound));
  EXPECT_EQ(scenario.name, "all of it");
  EXPECT_TRUE(scenario.open_inference);
  EXPECT_EQ(scenario.seed, 5);
  EXPECT_EQ(scenario.channels, 2);
  EXPECT_EQ(scenario.timeout, absl::Seconds(30));
  EXPECT_EQ(scenario.max_lateness, absl::Milliseconds(5));
  EXPECT_EQ(scenario.max_open, 100);
  EXPECT_EQ(scenario.slo.inter_token, absl::Milliseconds(50));
  ASSERT_EQ(scenario.kinds.size(), 3);
  const RequestKind& chat = scenario.kinds[0];
  EXPECT_EQ(chat.weight, 3);
  EXPECT_EQ(chat.prompt_words.shape, Distribution::Shape::kLognormal);
  EXPECT_EQ(chat.prompt_words.most, 80);
  EXPECT_EQ(chat.answer_tokens.shape, Distribution::Shape::kUniform);
  EXPECT_EQ(chat.cancel_after, 3);
  EXPECT_EQ(chat.deadline, absl::Seconds(1));
  EXPECT_EQ(chat.reader_delay, absl::Seconds(1));
  EXPECT_EQ(scenario.kinds[1].input.shape, (std::vector<int64_t>{1, 3, 8, 8}));
  EXPECT_EQ(scenario.kinds[2].call, Call::kLive);
  ASSERT_EQ(scenario.phases.size(), 3);
  EXPECT_TRUE(scenario.phases[0].warm_up);
  EXPECT_EQ(scenario.phases[0].arrivals.clients, 4);
  EXPECT_TRUE(scenario.phases[1].arrivals.rate.times_capacity);
  EXPECT_EQ(scenario.phases[1].duration, absl::Milliseconds(4500));
  EXPECT_TRUE(scenario.phases[1].drain);
  EXPECT_EQ(scenario.phases[2].arrivals.length, absl::Milliseconds(500));
}

TEST(ScenarioTest, TheScenariosOfTheRepositoryAreSound) {
  int found = 0;
  for (const auto& entry : std::filesystem::directory_iterator(ASSAY_SCENARIOS)) {
    const std::string name = entry.path().filename();
    if (entry.path().extension() != ".yaml" || name.find("policy") != std::string::npos) continue;
    EXPECT_OK(ReadScenario(entry.path())) << name;
    ++found;
  }
  EXPECT_EQ(found, 8);
}

struct Bad {
  const char *from, *to, *message;
};

TEST(ScenarioTest, BadInputIsNamedWithFileAndLine) {
  static const Bad kBad[] = {
      {"seed: 5", "sed: 5", "s.yaml:3: scenario: unknown key 'sed'"},
      {"seed: 5", "seed: -1", "s.yaml:3: seed: expected a whole number from 0"},
      {"seed: 5", "seed: [5]", "s.yaml:3: seed: expected a whole number"},
      {"seed: 5", "seed: 5\nseed: 6", "s.yaml:4: the key 'seed' is given twice"},
      {"seed: 5", "seed: 5\n? [a]\n: 1", "a key must be plain text"},
      {"protocol: oip", "protocol: http", "expected assay or oip, found 'http'"},
      {"timeout: 30s", "timeout: 30",
       "s.yaml:5: timeout: expected a duration above 0, such as 500ms or 2s, found '30'"},
      {"timeout: 30s", "timeout: 0s", "timeout: expected a duration above 0"},
      {"ttft: 200ms", "ttfb: 200ms", "s.yaml:8: slo: unknown key 'ttfb', expected e2e, itl, ttft"},
      {"call: generate", "call: chat",
       "s.yaml:10: call: expected generate, embed or live, found 'chat'"},
      {"model: m, ", "", "s.yaml:10: request: the key 'model' is missing"},
      {"weight: 3", "weight: 0", "weight: expected a number from"},
      {"sigma: 0.5, ", "", "prompt_words: the key 'sigma' is missing"},
      {"least: 4", "least: 10", "most: expected a number from 10"},
      {"least: 4", "least: nan", "least: expected a number from 1"},
      {"cancel_after: 3", "cancel_after: 0", "cancel_after: expected a whole number from 1"},
      {"name: image", "name: chat", "s.yaml:11: request: the name 'chat' is used twice"},
      {"datatype: FP32", "datatype: FP31", "s.yaml:11: input: unknown datatype 'FP31'"},
      {"[1, 3, 8, 8]", "[1, -1]", "s.yaml:11: shape: expected a list of whole numbers above 0"},
      {"[1, 3, 8, 8]", "[]", "shape: expected 1 to 16777216 elements"},
      {"call: live", "call: live, cancel_after: 2",
       "s.yaml:12: request: unknown key 'cancel_after'"},
      {"seconds: 3, ", "", "s.yaml:14: phase: the key 'seconds' is missing"},
      {"seconds: 3", "seconds: -3", "seconds: expected a number"},
      {"{closed: 4}", "{closed: 0}", "closed: expected a whole number from 1 to 10000, found '0'"},
      {"{closed: 4}", "{closed: 4, poisson: 2}", "s.yaml:14: arrivals: expected one of poisson"},
      {"{closed: 4}", "{}", "arrivals: expected one of poisson"},
      {"{closed: 4}", "7", "arrivals: expected a mapping"},
      {"{closed: 4}", "{uniform: 4}", "unknown key 'uniform'"},
      {"poisson: 2x", "poisson: fast", "poisson: expected requests per second"},
      {"poisson: 2x", "poisson: -2", "poisson: expected requests per second"},
      {"length: 500ms", "length: 3s", "s.yaml:16: burst: length is longer than every"},
      {"{closed: 4}", "{replay: nowhere.txt}", "s.yaml:14: replay: cannot read './nowhere.txt'"},
      {"warm_up: true", "warm_up: yes", "warm_up: expected true or false, found 'yes'"},
      {"name: b", "name: a", "s.yaml:15: phase: the name 'a' is used twice"},
      {"protocol: oip\n", "", "input: needs 'protocol: oip'"},
      {"phases:", "stages:", "the key 'phases' is missing"},
      {"name: all of it", "name: {", "not YAML"},
      {"name: all of it", "---\na: 1\n---\nname: x", "expected one YAML document"},
  };
  for (const Bad& bad : kBad) {
    EXPECT_THAT(ParseWith(bad.from, bad.to),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(HasSubstr("s.yaml:"), HasSubstr(bad.message))))
        << bad.from << " -> " << bad.to;
  }
}

TEST(ScenarioTest, CutAtEveryByteItIsRefusedOrSound) {
  const std::string text = kSound;
  for (size_t length = 0; length < text.size(); ++length) {
    const auto scenario = Parse(text.substr(0, length));
    if (scenario.ok()) {
      EXPECT_FALSE(scenario->phases.empty());
    } else {
      EXPECT_THAT(scenario, StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("s.yaml:")));
    }
  }
}

TEST(ScenarioTest, NotAMappingIsRefused) {
  for (const char* text : {"", "7", "[1]", "~"}) {
    EXPECT_THAT(Parse(text), StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("s.yaml:1")))
        << text;
  }
}

TEST(ScenarioTest, AMissingFileIsNamed) {
  EXPECT_THAT(ReadScenario("/nowhere/x.yaml"),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("'/nowhere/x.yaml'")));
}

const std::vector<RequestKind> kKinds = {{.name = "a"}, {.name = "b"}};

TEST(ScenarioTest, ArrivalFilesAreReadExactly) {
  ASSERT_OK_AND_ASSIGN(
      const auto arrivals,
      ParseArrivals("# trace\n0\n0.0015 b\n\n2.5, a # late\r\n2.5\n", "t.txt", kKinds));
  ASSERT_EQ(arrivals.size(), 4);
  EXPECT_EQ(arrivals[1].offset_us, 1500);
  EXPECT_EQ(arrivals[1].kind, 1);
  EXPECT_EQ(arrivals[2].offset_us, 2500000);
  EXPECT_EQ(arrivals[2].kind, 0);
  EXPECT_EQ(arrivals[3].kind, -1);
}

TEST(ScenarioTest, BadArrivalFilesAreNamedWithTheirLine) {
  static const std::pair<const char*, const char*> kBad[] = {
      {"1\nsoon\n", "t.txt:2: expected SECONDS [REQUEST], found 'soon'"},
      {"1\n-1\n", "t.txt:2: expected SECONDS"},
      {"nan\n", "t.txt:1: expected SECONDS"},
      {"1 a b\n", "t.txt:1: expected SECONDS"},
      {"2\n1\n", "t.txt:2: arrivals must ascend"},
      {"1 c\n", "t.txt:1: no request is named 'c'"},
      {"# nothing\n", "no arrival in the file"},
      {"", "no arrival in the file"},
  };
  for (const auto& [text, message] : kBad) {
    EXPECT_THAT(ParseArrivals(text, "t.txt", kKinds),
                StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(message)))
        << text;
  }
}

TEST(ScenarioTest, AReplayIsFoundBesideTheScenarioAndLastsUntilItsLastArrival) {
  const std::string folder = testing::TempDir();
  std::ofstream(folder + "/trace.txt") << "0.25 a\n1.5 a\n";
  std::ofstream(folder + "/replay.yaml")
      << "requests: [{name: a, call: live}]\nphases: [{arrivals: {replay: trace.txt}}]\n";
  ASSERT_OK_AND_ASSIGN(const Scenario scenario, ReadScenario(folder + "/replay.yaml"));
  EXPECT_EQ(scenario.name, "replay");
  ASSERT_EQ(scenario.phases[0].arrivals.replay.size(), 2);
  EXPECT_EQ(scenario.phases[0].arrivals.replay[1].offset_us, 1500000);
  EXPECT_EQ(scenario.phases[0].duration, absl::Microseconds(1500001));
}

}  // namespace
}  // namespace assay::load
