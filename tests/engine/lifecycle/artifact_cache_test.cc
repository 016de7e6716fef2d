#include "engine/lifecycle/artifact_cache.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "absl/strings/str_cat.h"
#include "base/atomic_file.h"
#include "tests/engine/lifecycle/admission_fixture.h"
#include "tests/support/random_tensor.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::Contains;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

QuantizedTensor Encode(const std::string& scheme, uint64_t seed) {
  return FindScheme(scheme).value()->Encode(RandomTensor({6, 40}, seed).view()).value();
}

TEST(ArtifactCacheTest, RemembersContentHashesUntilTheFileChanges) {
  TempDir directory;
  ASSERT_OK_AND_ASSIGN(const std::string bytes, ReadFile(Stories260k()));
  const std::string path = directory.Write("model.gguf", bytes);
  ASSERT_OK_AND_ASSIGN(const auto checkpoint, OpenCheckpoint(path));
  ArtifactCache cache(directory.path() + "/cache");
  ASSERT_OK_AND_ASSIGN(const std::string hash, cache.ContentHash(*checkpoint, path));
  EXPECT_EQ(hash, checkpoint->ContentHash().value());
  // A remembered value is used: put another one in its place.
  const std::string file = directory.path() + "/cache/checkpoints.json";
  nlohmann::json known = nlohmann::json::parse(ReadFile(file).value());
  ASSERT_EQ(known.size(), 1u);
  known.begin().value() = "remembered";
  ASSERT_OK(WriteFileAtomically(file, known.dump()));
  EXPECT_THAT(cache.ContentHash(*checkpoint, path), IsOkAndHolds("remembered"));
  fs::last_write_time(path, fs::last_write_time(path) + std::chrono::seconds(1));
  EXPECT_THAT(cache.ContentHash(*checkpoint, path), IsOkAndHolds(hash));
}

void Commit(const ArtifactCache& cache, const std::string& key, uint64_t seed) {
  auto writer = cache.NewArtifact(key).value();
  ASSERT_OK(writer->Add("a", Encode("int8_channel", seed), {.scheme = "int8_channel"}));
  ASSERT_OK(writer->Commit(key, "source", "nearest-1"));
}

std::vector<std::string> Names(const std::string& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(ArtifactCacheTest, WritersOfOneKeyNeverLeaveAnIncompleteArtifact) {
  constexpr int kCommits = 25;
  TempDir directory;
  Commit(ArtifactCache(directory.path()), "key", 0);
  std::atomic<bool> stop{false};
  // Now and then both write the same, mostly each replaces what the other one wrote.
  const auto write = [&](const std::string& certificate, uint64_t step) {
    const ArtifactCache cache(directory.path());  // as another process has it
    for (uint64_t i = 0; i < kCommits; ++i) {
      Commit(cache, "key", i * step % 3);
      EXPECT_OK(cache.StoreCertificate("key", certificate, {}));
    }
  };
  std::thread reader([&] {
    const ArtifactCache cache(directory.path());
    while (!stop) {
      const auto found = cache.Find("key");
      ASSERT_OK(found);
      ASSERT_NE(*found, nullptr);
      ASSERT_OK((*found)->Read("a"));
    }
  });
  std::thread one(write, "one", 1), two(write, "two", 2);
  one.join();
  two.join();
  stop = true;
  reader.join();
  const ArtifactCache cache(directory.path());
  EXPECT_TRUE(cache.FindCertificate("key", "one").has_value());
  EXPECT_TRUE(cache.FindCertificate("key", "two").has_value());
  EXPECT_THAT(Names(directory.path() + "/artifacts"), ElementsAre("key"));
}

TEST(ArtifactCacheTest, TheSameArtifactStaysWhereItIs) {
  TempDir directory;
  const ArtifactCache cache(directory.path());
  Commit(cache, "key", 1);
  const std::string weights = directory.path() + "/artifacts/key/weights.bin";
  const fs::file_time_type written = fs::file_time_type::clock::now() - std::chrono::hours(1);
  fs::last_write_time(weights, written);
  Commit(cache, "key", 1);
  EXPECT_EQ(fs::last_write_time(weights), written);
  Commit(cache, "key", 2);
  EXPECT_NE(fs::last_write_time(weights), written);
}

TEST(ArtifactCacheTest, WhatAKilledProcessLeftIsRemovedAndWhatALiveOneWritesStays) {
  TempDir directory;
  const ArtifactCache cache(directory.path());
  auto live = cache.NewArtifact("live").value();
  const pid_t child = fork();
  if (child == 0) {
    const auto killed = cache.NewArtifact("killed");
    (void)raise(SIGKILL);
  }
  ASSERT_EQ(waitpid(child, nullptr, 0), child);
  const std::string artifacts = directory.path() + "/artifacts";
  EXPECT_THAT(Names(artifacts), ElementsAre(HasSubstr("killed.tmp."), HasSubstr("live.tmp.")));
  const ArtifactCache next(directory.path());
  EXPECT_THAT(Names(artifacts), ElementsAre(HasSubstr("live.tmp.")));
  ASSERT_OK(live->Add("a", Encode("bf16", 1), {.scheme = "bf16"}));
  EXPECT_OK(live->Commit("live", "source", "nearest-1"));
  const ArtifactCache after(directory.path());
  EXPECT_THAT(Names(artifacts), ElementsAre("live"));
}

// Two containers on one volume may both be process 1: nothing may hang on the number.
TEST(ArtifactCacheTest, WritersOfOneKeyHaveFoldersOfTheirOwn) {
  TempDir directory;
  const ArtifactCache cache(directory.path());
  auto one = cache.NewArtifact("key").value(), two = cache.NewArtifact("key").value();
  const std::string artifacts = directory.path() + "/artifacts";
  EXPECT_THAT(Names(artifacts), testing::SizeIs(2));
  for (const std::string& name : Names(artifacts)) {
    EXPECT_THAT(name, testing::MatchesRegex("key\\.tmp\\.[0-9a-f]{16}"));
  }
  two.reset();
  EXPECT_THAT(Names(artifacts), testing::SizeIs(1));
  ASSERT_OK(one->Add("a", Encode("bf16", 1), {.scheme = "bf16"}));
  EXPECT_OK(one->Commit("key", "source", "nearest-1"));
  EXPECT_THAT(Names(artifacts), ElementsAre("key"));
}

TEST(ArtifactCacheTest, FilesThatAKilledProcessLeftAreRemovedAfterAnHour) {
  TempDir directory;
  {
    const ArtifactCache cache(directory.path());
    Commit(cache, "key", 1);
    ASSERT_OK(cache.StoreCertificate("key", "c", {}));
  }
  const std::string certificates = directory.path() + "/artifacts/key/certificates";
  for (const std::string& folder : {directory.path(), certificates}) {
    for (const char* name : {"a.json.tmp.1.0", "b.json.tmp.0123456789abcdef", "kept.json"}) {
      std::ofstream(folder + "/" + name) << "{";
      fs::last_write_time(folder + "/" + name,
                          fs::file_time_type::clock::now() - std::chrono::minutes(61));
    }
    std::ofstream(folder + "/now.json.tmp.0123456789abcdef") << "{";  // somebody writes it
  }
  const ArtifactCache next(directory.path());
  EXPECT_THAT(Names(directory.path()),
              ElementsAre("artifacts", "kept.json", "now.json.tmp.0123456789abcdef"));
  EXPECT_THAT(Names(certificates),
              ElementsAre("c.json", "kept.json", "now.json.tmp.0123456789abcdef"));
}

TEST(ArtifactCacheTest, TheQuarantineKeepsTheNewestFour) {
  TempDir directory;
  const ArtifactCache cache(directory.path());
  for (const char* key : {"f", "e", "d", "c", "b", "a"}) {
    Commit(cache, key, 1);
    ASSERT_OK(cache.Quarantine(key));
  }
  EXPECT_THAT(Names(directory.path() + "/quarantine"), ElementsAre("a.5", "b.4", "c.3", "d.2"));
  EXPECT_OK(cache.Quarantine("a"));  // gone already: another process was faster
}

TEST(ArtifactCacheTest, ThereIsNoCertificateWithoutAnArtifact) {
  TempDir directory;
  const ArtifactCache cache(directory.path());
  EXPECT_THAT(cache.StoreCertificate("key", "c", {}),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("key")));
  EXPECT_EQ(cache.Find("key").value(), nullptr);
}

TEST(ArtifactCacheTest, ACertificateThatWasChangedIsNotOne) {
  TempDir directory;
  const ArtifactCache cache(directory.path());
  Commit(cache, "key", 1);
  AdmissionReport report;
  report.verification.mean_kl.mean = 0.002;
  ASSERT_OK(cache.StoreCertificate("key", "c", report));
  ASSERT_TRUE(cache.FindCertificate("key", "c").has_value());
  EXPECT_EQ(cache.FindCertificate("key", "c")->verification.mean_kl.mean, 0.002);
  EXPECT_FALSE(cache.FindCertificate("key", "d").has_value());
  const std::string path = directory.path() + "/artifacts/key/certificates/c.json";
  std::string text = ReadFile(path).value();
  text.replace(text.find("0.002"), 5, "0.001");
  ASSERT_OK(WriteFileAtomically(path, text));
  EXPECT_FALSE(cache.FindCertificate("key", "c").has_value());
}

// ---- admissions that meet the cache ----

class CachedAdmissionTest : public AdmissionFixture {
 protected:
  std::string ArtifactDirectory() const {
    std::string found;
    for (const auto& entry : fs::directory_iterator(directory_.path() + "/cache/artifacts")) {
      EXPECT_EQ(found, "");
      found = entry.path().string();
    }
    return found;
  }
  AdmissionReport AdmitOnce() {
    const AdmissionProgress end = AdmitStories();
    EXPECT_OK(end.status);
    return end.report == nullptr ? AdmissionReport() : *end.report;
  }
};

TEST_F(CachedAdmissionTest, TheSecondAdmissionIsALoad) {
  Start(Cached());
  const AdmissionReport first = AdmitOnce();
  EXPECT_EQ(quantized_, 21);
  EXPECT_FALSE(first.artifact_cache_hit);
  metrics_.SetArtifactCacheBytes(0);
  Start(Cached());  // as after a restart
  EXPECT_THAT(metrics_.Scrape(), testing::Not(HasSubstr("\nassay_artifact_cache_bytes 0\n")));
  const AdmissionReport second = AdmitOnce();
  EXPECT_EQ(quantized_, 0);
  EXPECT_TRUE(second.artifact_cache_hit);
  EXPECT_TRUE(second.certificate_hit);
  EXPECT_THAT(stages_,
              ElementsAre("open", "profile", "look_up", "load", "warm", "publish", "done"));
  EXPECT_EQ(second.artifact_hash, first.artifact_hash);
  EXPECT_EQ(second.verification.mean_kl.mean, first.verification.mean_kl.mean);
  EXPECT_EQ(second.bytes, first.bytes);
  EXPECT_EQ(second.layers.size(), first.layers.size());
  EXPECT_EQ(second.version, 2);
  EXPECT_OK(registry_.Acquire("stories", 2));
}

TEST_F(CachedAdmissionTest, TwoAdmissionsOfTheSameInputGiveTheSameArtifact) {
  AdmissionOptions options = Cached();
  Start(options);
  const std::string first = AdmitOnce().artifact_hash;
  options.cache_dir += "-other";
  Start(options);
  EXPECT_EQ(AdmitOnce().artifact_hash, first);
  EXPECT_EQ(quantized_, 21);
}

TEST_F(CachedAdmissionTest, AnotherInstructionSetVerifiesAgainAndDoesNotQuantize) {
  Start(Cached());
  AdmitOnce();
  Start(Cached(), {.host_isa = "some_other_isa"});
  const AdmissionReport other = AdmitOnce();
  EXPECT_EQ(quantized_, 0);
  EXPECT_TRUE(other.artifact_cache_hit);
  EXPECT_FALSE(other.certificate_hit);
  EXPECT_THAT(stages_, Contains("verify"));
  AdmitOnce();
  EXPECT_THAT(stages_, Not(Contains("verify")));  // certified for that host, too
}

TEST_F(CachedAdmissionTest, AnotherBudgetVerifiesAgain) {
  AdmissionOptions options = Cached();
  const auto with_limit = [](std::string_view kl) {
    return Policy::Parse(
               absl::StrCat("version: 1\nrecipes:\n  int8: {}\nbudgets:\n  b: {mean_kl: ",
                            std::string(kl), "}\nrules:\n  - name: only\n    reason: test\n",
                            "    when: {device: cpu}\n    recipe: int8\n    budget: b\n"),
               "test")
        .value();
  };
  options.policy = with_limit("0.01");
  Start(options);
  AdmitOnce();
  options.policy = with_limit("0.009");
  Start(options);
  const AdmissionReport report = AdmitOnce();
  EXPECT_TRUE(report.artifact_cache_hit);
  EXPECT_FALSE(report.certificate_hit);
  EXPECT_THAT(stages_, Contains("verify"));
}

TEST_F(CachedAdmissionTest, ACorruptArtifactIsQuarantinedAndQuantizedAgain) {
  Start(Cached());
  const std::string hash = AdmitOnce().artifact_hash;
  for (const char* name : {"/weights.bin", "/manifest.json"}) {
    const std::string path = ArtifactDirectory() + name;
    std::string bytes = ReadFile(path).value();
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 0x40);
    std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
    const AdmissionReport report = AdmitOnce();
    EXPECT_EQ(quantized_, 21) << name;
    EXPECT_FALSE(report.artifact_cache_hit) << name;
    EXPECT_EQ(report.artifact_hash, hash) << name;
    AdmitOnce();
    EXPECT_EQ(quantized_, 0) << name;
  }
  EXPECT_THAT(metrics_.Scrape(),
              HasSubstr("assay_artifact_cache_requests_total{result=\"corrupt\"} 2"));
  size_t quarantined = 0;
  for (const auto& entry : fs::directory_iterator(directory_.path() + "/cache/quarantine")) {
    quarantined += entry.is_directory() ? 1 : 0;
  }
  EXPECT_EQ(quarantined, 2u);
}

TEST_F(CachedAdmissionTest, ACacheThatCannotBeWrittenCostsTimeAndNotService) {
  AdmissionOptions options = Cached();
  options.cache_dir = directory_.Write("a_file_in_the_way", "x");
  Start(options);
  const AdmissionProgress end = AdmitStories();
  EXPECT_OK(end.status);
  EXPECT_OK(registry_.Acquire("stories"));
}

// A certificate is for every request of the artifact: what one of them measured on labelled data of
// its own is not in it.
TEST_F(CachedAdmissionTest, LabelledDataOfOneRequestIsNotInTheReportOfTheNext) {
  Start(Cached());
  const std::string labelled = directory_.Write(
      "mine.jsonl", R"({"text": "Once upon a time", "references": ["there was a girl"]})"
                    "\n");
  AdmissionRequest request{.name = "stories", .path = Stories260k(), .labelled = labelled};
  request.budget = Budget{.min_task_recovery = 0};
  const AdmissionProgress first = Admit(request);
  ASSERT_OK(first.status);
  EXPECT_FALSE(first.report->tasks.empty());
  request.labelled.clear();
  const AdmissionProgress second = Admit(request);
  ASSERT_OK(second.status);
  EXPECT_TRUE(second.report->certificate_hit);
  EXPECT_TRUE(second.report->tasks.empty());
  EXPECT_EQ(second.report->labelled_set, "");
  EXPECT_EQ(second.report->labelled_hash, "");
  request.labelled = labelled;  // measured anew
  const AdmissionProgress third = Admit(request);
  EXPECT_TRUE(third.report->certificate_hit);
  EXPECT_FALSE(third.report->tasks.empty());
  EXPECT_EQ(third.report->labelled_hash, first.report->labelled_hash);
}

}  // namespace
}  // namespace assay
