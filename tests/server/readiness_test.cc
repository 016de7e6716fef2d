#include "server/readiness.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

namespace assay {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

VersionInfo At(const std::string& name, VersionState state, const std::string& stage = "",
               const std::string& reason = "") {
  VersionInfo info;
  info.name = name;
  info.version = 1;
  info.state = state;
  info.stage = stage;
  info.reason = reason;
  return info;
}

TEST(ReadinessTest, WaitsForEveryModelOfTheStart) {
  Readiness readiness(/*strict=*/true);
  EXPECT_THAT(readiness.Obstacles(), ElementsAre("the server is starting"));
  readiness.Require("a");
  readiness.Require("b");
  readiness.StartupDeclared();
  EXPECT_THAT(readiness.Obstacles(), ElementsAre("a: not yet admitted", "b: not yet admitted"));
  readiness.Changed(At("a", VersionState::kServing), true);
  readiness.Changed(At("b", VersionState::kAdmitting, "verify"), false);
  EXPECT_THAT(readiness.Obstacles(), ElementsAre("b: ADMITTING (verify)"));
  readiness.Changed(At("b", VersionState::kServing), true);
  EXPECT_TRUE(readiness.ready());
}

TEST(ReadinessTest, ARejectedModelKeepsAStrictServerUnready) {
  for (const bool strict : {true, false}) {
    Readiness readiness(strict);
    readiness.Require("a");
    readiness.StartupDeclared();
    readiness.Changed(At("a", VersionState::kRejected, "", "mean KL 0.5"), false);
    EXPECT_EQ(readiness.ready(), !strict);
    if (strict) {
      EXPECT_THAT(readiness.Obstacles(), ElementsAre("a: REJECTED: mean KL 0.5"));
    }
  }
}

TEST(ReadinessTest, AModelThatNeverGotToTheRegistryIsNamed) {
  Readiness readiness(true);
  readiness.Require("a");
  readiness.StartupDeclared();
  readiness.Failed("a", "no such file");
  EXPECT_THAT(readiness.Obstacles(), ElementsAre("a: FAILED: no such file"));
}

TEST(ReadinessTest, ModelsAdmittedLaterAndUnloadedOnesDoNotMatter) {
  Readiness readiness(true);
  readiness.Require("a");
  readiness.StartupDeclared();
  readiness.Changed(At("a", VersionState::kServing), true);
  readiness.Changed(At("later", VersionState::kAdmitting), false);
  EXPECT_TRUE(readiness.ready());
  readiness.Changed(At("a", VersionState::kRetired, "", "unloaded"), false);
  EXPECT_THAT(readiness.Obstacles(), IsEmpty());
}

TEST(ReadinessTest, AnOldVersionThatRetiresBehindANewOneDoesNotUnready) {
  Readiness readiness(true);
  readiness.Require("a");
  readiness.StartupDeclared();
  readiness.Changed(At("a", VersionState::kServing), true);
  readiness.Changed(At("a", VersionState::kRetired), true);  // version 2 serves
  EXPECT_TRUE(readiness.ready());
}

TEST(ReadinessTest, TellsTheHealthServiceUntilItDrains) {
  Readiness readiness(true);
  std::map<std::string, bool> health;
  readiness.SetHealthSink([&health](const std::string& s, bool serving) { health[s] = serving; });
  EXPECT_TRUE(health.at(""));
  EXPECT_FALSE(health.at("ready"));
  readiness.Require("a");
  readiness.StartupDeclared();
  readiness.Changed(At("a", VersionState::kServing), true);
  EXPECT_TRUE(health.at("a"));
  EXPECT_TRUE(health.at("ready"));
  readiness.Drain();
  EXPECT_FALSE(readiness.ready());
  health.clear();
  readiness.Changed(At("a", VersionState::kDraining), false);
  EXPECT_THAT(health, IsEmpty());  // gRPC's own Shutdown has said NOT_SERVING to all
}

}  // namespace
}  // namespace assay
