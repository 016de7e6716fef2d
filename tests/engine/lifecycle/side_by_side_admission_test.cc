// Admissions beside versions that serve: canaries, and the memory of what is kept for a rollback.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "tests/engine/lifecycle/admission_fixture.h"

namespace assay {
namespace {

using absl::StatusCode;
using testing::HasSubstr;

class SideBySideAdmissionTest : public AdmissionFixture {
 protected:
  SideBySideAdmissionTest() : AdmissionFixture(absl::Hours(1)) {}
  // One recipe: a ladder's next may need less.
  AdmissionProgress AdmitAs(const std::string& name, double canary_share = 0) {
    return Admit(
        {.name = name, .path = Stories260k(), .recipe = "w8a16", .canary_share = canary_share});
  }
  VersionLabels Labels() { return registry_.Labels("stories").value(); }
};

TEST_F(SideBySideAdmissionTest, AnAdmissionThatDoesNotFitTakesTheMemoryOfPreviousVersions) {
  const size_t before = CpuDevice().allocated_bytes();
  Start(Cached());
  ASSERT_OK(AdmitAs("stories").status);
  const size_t bytes = CpuDevice().allocated_bytes() - before;  // of one version
  const AdmissionProgress second = AdmitAs("stories");
  ASSERT_OK(second.status);
  EXPECT_EQ(Labels().previous, 1);  // there was room
  AdmissionOptions tight = Cached();
  tight.memory_limit_bytes =
      CpuDevice().allocated_bytes() - bytes / 2 + second.report->estimated_peak_bytes;
  Start(tight);
  EXPECT_OK(AdmitAs("third").status);
  EXPECT_EQ(Labels().previous, 0);
  EXPECT_EQ(Labels().stable, 2);
  EXPECT_EQ(registry_.Find("stories", 1)->state, VersionState::kRetired);
  EXPECT_THAT(registry_.Find("stories", 1)->reason, HasSubstr("needed by an admission"));
  // What serves is not touched.
  EXPECT_THAT(AdmitAs("fourth").status, StatusIs(StatusCode::kResourceExhausted));
  EXPECT_EQ(Labels().stable, 2);
}

TEST_F(SideBySideAdmissionTest, ACanaryServesBesideTheStableVersion) {
  Start(Cached());
  EXPECT_THAT(
      pipeline_->Enqueue({.name = "stories", .path = Stories260k(), .canary_share = 0.1}, nullptr),
      StatusIs(StatusCode::kFailedPrecondition, HasSubstr("none serves: model=stories")));
  ASSERT_OK(AdmitAs("stories").status);
  ASSERT_OK(AdmitAs("stories", 0.25).status);
  EXPECT_EQ(Labels().stable, 1);
  EXPECT_EQ(Labels().canary, 2);
  EXPECT_EQ(Labels().canary_share, 0.25);
  // Its number is the highest that serves, though it is not the stable one.
  EXPECT_THAT(pipeline_->Enqueue({.name = "stories", .version = 2, .path = Stories260k()}, nullptr),
              StatusIs(StatusCode::kAlreadyExists, HasSubstr("version=2")));
  ASSERT_OK(AdmitAs("stories").status);
  EXPECT_EQ(Labels().stable, 3);
  EXPECT_EQ(Labels().canary, 2);
  EXPECT_EQ(Labels().previous, 1);
}

TEST_F(SideBySideAdmissionTest, ACanarysShareIsAboveZeroAndAtMostOne) {
  Start({});
  for (const double bad : {-0.1, 1.5, std::nan("")}) {
    EXPECT_THAT(
        pipeline_->Enqueue({.name = "a", .path = Stories260k(), .canary_share = bad}, nullptr),
        StatusIs(StatusCode::kInvalidArgument, HasSubstr(absl::StrCat("canary_share=", bad))));
  }
  EXPECT_THAT(
      pipeline_->Enqueue({.name = "a", .path = Stories260k(), .dry_run = true, .canary_share = 0.5},
                         nullptr),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("dry run")));
}

}  // namespace
}  // namespace assay
