#include "server/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::AllOf;
using testing::HasSubstr;

absl::StatusOr<EffectiveConfig> LoadYaml(const std::string& text) {
  const TempDir folder;
  return LoadConfig({folder.Write("assay.yaml", text), {}, nullptr});
}

TEST(ConfigTest, ReadsNestedKeysWithUnits) {
  ASSERT_OK_AND_ASSIGN(const EffectiveConfig loaded,
                       LoadYaml("grpc_port: 9001\ndrain_timeout: 5s\n"
                                "grpc:\n  max_message_size: 8MiB\n  reflection: false\n"
                                "engine:\n  kv_cache: 1GiB\n  max_batch_delay: 2ms\n"));
  EXPECT_EQ(loaded.config.grpc_port, 9001);
  EXPECT_EQ(loaded.config.drain_timeout, absl::Seconds(5));
  EXPECT_EQ(loaded.config.grpc.max_message_bytes, 8u << 20);
  EXPECT_FALSE(loaded.config.grpc.reflection);
  EXPECT_EQ(loaded.config.engine.kv_bytes, size_t{1} << 30);
  EXPECT_EQ(loaded.config.engine.max_delay, absl::Milliseconds(2));
}

TEST(ConfigTest, AnUnknownKeyNamesTheLineAndTheNearestKey) {
  EXPECT_THAT(LoadYaml("grpc_port: 1\n\ngrpc:\n  max_mesage_size: 1MiB\n"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("assay.yaml:4: unknown key 'grpc.max_mesage_size'"),
                             HasSubstr("did you mean 'grpc.max_message_size'?"))));
}

TEST(ConfigTest, ABadValueNamesTheLineAndWhatWasExpected) {
  EXPECT_THAT(LoadYaml("threads: 2\ngrpc_port: 99999\n"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr(":2: grpc_port: '99999' is not a whole number from 0 to"))));
  EXPECT_THAT(LoadYaml("grpc:\n  max_message_size: 12 parsecs\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(":2: grpc.max_message_size")));
  EXPECT_THAT(LoadYaml("drain_timeout: soon\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a duration such as")));
  EXPECT_THAT(LoadYaml("log_format: xml\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("one of text, json")));
  EXPECT_THAT(LoadYaml("strict_readiness: yes please\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("true or false")));
  EXPECT_THAT(LoadYaml("engine:\n  kv_cache: 99999999999TiB\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a size such as")));
}

TEST(ConfigTest, MalformedYamlNamesTheLine) {
  EXPECT_THAT(LoadYaml("threads: 2\n  grpc_port: [\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("not YAML")));
  EXPECT_THAT(LoadYaml("- a\n- b\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("expected a mapping")));
  EXPECT_THAT(LoadYaml("listen: [a, b]\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("found a list")));
  EXPECT_THAT(LoadYaml("threads: 1\nthreads: 2\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("is set twice, first at")));
  EXPECT_THAT(LoadYaml("threads: 1\n---\nthreads: 2\n"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("assay.yaml:2: a second document begins ('---')")));
  EXPECT_OK(LoadYaml("---\nthreads: 1\n"));
  EXPECT_OK(LoadYaml("# nothing\n"));
  EXPECT_THAT(LoadYaml("grpc: 5\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("'grpc' is a section")));
}

TEST(ConfigTest, TheAddressMustBeOne) {
  for (const char* good : {"127.0.0.1", "0.0.0.0", "::1", "[::]", "localhost", "host-1.example"}) {
    EXPECT_OK(LoadYaml(absl::StrCat("listen: '", good, "'\n"))) << good;
  }
  for (const char* bad : {"999.1.1.1", "1.2.3", "::fffff", "a b", "127.0.0.1:80", ""}) {
    EXPECT_THAT(LoadYaml(absl::StrCat("listen: '", bad, "'\n")),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         HasSubstr(absl::StrCat("'", bad, "' is not an IP address"))));
  }
}

TEST(ConfigTest, AMisspeltVariableIsAWarningThatNamesIt) {
  ASSERT_OK_AND_ASSIGN(
      const EffectiveConfig loaded,
      LoadConfig({"", {}, nullptr, {"HOME", "ASSAY_CACHE", "ASSAY_GRPC_PORT", "ASSAY_GRPC_PRT"}}));
  EXPECT_THAT(loaded.warnings,
              testing::ElementsAre(AllOf(HasSubstr("ASSAY_GRPC_PRT is no option"),
                                         HasSubstr("did you mean 'ASSAY_GRPC_PORT'?"))));
}

TEST(ConfigTest, AMissingFileIsNotFound) {
  EXPECT_THAT(LoadConfig({"/no/such/assay.yaml", {}, nullptr}),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/no/such/assay.yaml")));
}

TEST(ConfigTest, AFlagWinsOverTheEnvironmentOverTheFile) {
  const TempDir folder;
  const std::string file =
      folder.Write("assay.yaml", "grpc_port: 1001\nhttp_port: 1002\nthreads: 3\n");
  const auto environment = [](const char* name) -> const char* {
    if (std::string_view(name) == "ASSAY_GRPC_PORT") return "2001";
    if (std::string_view(name) == "ASSAY_HTTP_PORT") return "2002";
    return nullptr;
  };
  ASSERT_OK_AND_ASSIGN(const EffectiveConfig loaded,
                       LoadConfig({file, {{"grpc_port", "3001"}}, environment}));
  EXPECT_EQ(loaded.config.grpc_port, 3001);
  EXPECT_EQ(loaded.config.http_port, 2002);
  EXPECT_EQ(loaded.config.threads, 3);
  EXPECT_EQ(loaded.origin.at("grpc_port"), "--grpc-port");
  EXPECT_EQ(loaded.origin.at("http_port"), "ASSAY_HTTP_PORT");
  EXPECT_EQ(loaded.origin.at("threads"), file + ":3");
  EXPECT_EQ(loaded.origin.at("listen"), "default");
}

TEST(ConfigTest, TheTwoPortsMustDiffer) {
  EXPECT_THAT(LoadConfig({"", {{"grpc_port", "8002"}}, nullptr}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("the ports must differ")));
}

TEST(ConfigTest, EveryOptionHasItsTwinsAndReadsBackWhatItShows) {
  for (const ConfigOption& option : AllConfigOptions()) {
    EXPECT_THAT(option.flag(), testing::MatchesRegex("--[a-z0-9-]+"));
    EXPECT_THAT(option.environment(), testing::MatchesRegex("ASSAY_[A-Z0-9_]+"));
    ServerConfig config;
    EXPECT_OK(option.set(config, option.show(ServerConfig()))) << option.key;
    EXPECT_EQ(option.show(config), option.show(ServerConfig())) << option.key;
  }
}

TEST(ConfigTest, WhatIsPrintedReadsBackTheSame) {
  ASSERT_OK_AND_ASSIGN(
      const EffectiveConfig first,
      LoadConfig({"", {{"listen", "0.0.0.0"}, {"grpc.memory_quota", "3GiB"}}, nullptr}));
  EXPECT_THAT(Print(first), HasSubstr("# --grpc-memory-quota"));
  ASSERT_OK_AND_ASSIGN(const EffectiveConfig second, LoadYaml(Print(first)));
  for (const ConfigOption& option : AllConfigOptions()) {
    EXPECT_EQ(option.show(first.config), option.show(second.config)) << option.key;
  }
}

TEST(ConfigTest, OddTextsArePrintedSoThatTheyReadBackTheSame) {
  const std::string odd[] = {
      "null", "~", "-", "- x", "a\nb", "a\tb\"\\", std::string("\x01\x7f"), "it's", "a: b #c"};
  for (const std::string& text : odd) {
    ASSERT_OK_AND_ASSIGN(const EffectiveConfig given,
                         LoadConfig({"", {{"model_repository", text}}, nullptr}));
    ASSERT_EQ(given.config.model_repository, text);
    ASSERT_OK_AND_ASSIGN(const EffectiveConfig again, LoadYaml(Print(given)));
    EXPECT_EQ(again.config.model_repository, text);
  }
}

TEST(ConfigTest, AliasesThatHaveNoEndAreAnError) {
  EXPECT_THAT(LoadYaml("a: &x\n  b: *x\n"),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("inside its own anchor")));
  std::string doubling = "a: &a {x: 1, y: 2}\n";
  for (char c = 'b'; c < 'z'; ++c) {
    absl::StrAppend(&doubling, std::string(1, c), ": &", std::string(1, c), " {x: *",
                    std::string(1, static_cast<char>(c - 1)), ", y: *",
                    std::string(1, static_cast<char>(c - 1)), "}\n");
  }
  EXPECT_THAT(LoadYaml(doubling),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("more than 10000 keys")));
}

TEST(ConfigTest, TheExampleIsValidAndNamesEveryKey) {
  const std::string path = GoldenPath("../../deploy/example.yaml");
  ASSERT_OK_AND_ASSIGN(const EffectiveConfig loaded, LoadConfig({path, {}, nullptr}));
  for (const ConfigOption& option : AllConfigOptions()) {
    EXPECT_THAT(loaded.origin.at(option.key), HasSubstr("example.yaml")) << option.key;
    if (option.key != "cache_dir") {
      EXPECT_EQ(option.show(loaded.config), option.show(ServerConfig()))
          << option.key << ": the example shows the defaults";
    }
  }
}

TEST(ConfigTest, AdministrationIsOffTheDataPortUnlessSaidOtherwise) {
  ServerConfig config;
  EXPECT_TRUE(config.is_loopback());
  EXPECT_FALSE(config.admin_on_data_port());
  config.admin = AdminAccess::kAuto;
  EXPECT_TRUE(config.admin_on_data_port());
  config.auth.tokens = "tokens";
  EXPECT_FALSE(config.admin_on_data_port());
  config.auth.tokens = "";
  config.listen = "0.0.0.0";
  EXPECT_FALSE(config.is_loopback());
  EXPECT_FALSE(config.admin_on_data_port());
  config.admin = AdminAccess::kOn;
  EXPECT_TRUE(config.admin_on_data_port());
}

TEST(ConfigTest, PathsAreFreeOnlyWhereNobodyElseCanAskForOne) {
  ServerConfig config;
  EXPECT_FALSE(config.paths_are_confined());
  config.auth.tokens = "tokens";
  EXPECT_TRUE(config.paths_are_confined());
  config = {};
  config.model_roots = {"/models"};
  EXPECT_TRUE(config.paths_are_confined());
  config = {};
  config.listen = "0.0.0.0";
  EXPECT_TRUE(config.paths_are_confined());
  config = {};
  config.admin_listen = "10.0.0.1";
  EXPECT_TRUE(config.paths_are_confined());
  config.admin_port = -1;
  EXPECT_FALSE(config.paths_are_confined());
}

TEST(ConfigTest, PortsDiffer) {
  ASSERT_OK(LoadYaml("admin_port: 9\n").status());
  EXPECT_THAT(LoadYaml("admin_port: 8001\n").status(),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       AllOf(HasSubstr("admin_port: 8001 is grpc_port, too"))));
  EXPECT_THAT(LoadYaml("grpc_port: 8003\n").status(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("admin_port")));
  ASSERT_OK(LoadYaml("grpc_port: 0\nhttp_port: 0\nadmin_port: 0\n").status());
  ASSERT_OK(LoadYaml("health_port: -1\nadmin_port: -1\n").status());
}

TEST(ConfigTest, BoundsThatCannotBeOffSaySo) {
  for (const char* const text : {"0", "1023"})
    EXPECT_THAT(LoadYaml(absl::StrCat("limits:\n  max_header_size: ", text, "\n")),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         AllOf(HasSubstr(":2: limits.max_header_size: '"), HasSubstr(text),
                               HasSubstr("expected 1KiB or more; this bound cannot be off"))));
  EXPECT_THAT(
      LoadYaml("limits:\n  handshake_timeout: 0\n"),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("limits.handshake_timeout: '0'")));
  EXPECT_OK(LoadYaml("limits:\n  max_header_size: 1KiB\n  handshake_timeout: 1ms\n"));
}

TEST(ConfigTest, RootsAreAListWithCommas) {
  ASSERT_OK_AND_ASSIGN(const EffectiveConfig two, LoadYaml("model_roots: /a, /b c\n"));
  EXPECT_THAT(two.config.model_roots, testing::ElementsAre("/a", "/b c"));
  ASSERT_OK_AND_ASSIGN(const EffectiveConfig none, LoadYaml("model_roots: ''\n"));
  EXPECT_THAT(none.config.model_roots, testing::IsEmpty());
}

}  // namespace
}  // namespace assay
