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

// ---- the bytes of one artifact ----

QuantizedTensor Encode(const std::string& scheme, uint64_t seed) {
  return FindScheme(scheme).value()->Encode(RandomTensor({6, 40}, seed).view()).value();
}

class ArtifactTest : public testing::Test {
 protected:
  std::string Directory() const { return directory_.path() + "/artifact"; }
  std::string Write() {
    auto writer = ArtifactWriter::Create(Directory()).value();
    EXPECT_OK(writer->Add("a", Encode("int8_channel", 1),
                          {.scheme = "int8_channel", .activation = ActivationMode::kA8Token}));
    EXPECT_OK(writer->Add("b", Encode("bf16", 2), {.scheme = "bf16", .fallback = true}));
    return writer->Commit("key", "source", "nearest-1").value();
  }
  void Rewrite(const std::string& name, const std::string& bytes) {
    std::ofstream(Directory() + "/" + name, std::ios::binary | std::ios::trunc) << bytes;
  }
  std::string Bytes(const std::string& name) { return ReadFile(Directory() + "/" + name).value(); }
  TempDir directory_;
};

TEST_F(ArtifactTest, ReadsBackWhatWasWritten) {
  const std::string hash = Write();
  ASSERT_OK_AND_ASSIGN(const auto reader, ArtifactReader::Open(Directory()));
  EXPECT_EQ(reader->manifest().artifact_hash, hash);
  EXPECT_EQ(reader->manifest().key, "key");
  EXPECT_TRUE(reader->manifest().slots.at("b").plan.fallback);
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor read, reader->Read("a"));
  const QuantizedTensor expected = Encode("int8_channel", 1);
  ASSERT_EQ(read.codes.bytes(), expected.codes.bytes());
  EXPECT_EQ(
      std::memcmp(read.codes.data<char>(), expected.codes.data<char>(), expected.codes.bytes()), 0);
  EXPECT_EQ(
      std::memcmp(read.scales.data<char>(), expected.scales.data<char>(), expected.scales.bytes()),
      0);
  EXPECT_THAT(reader->Read("c"), StatusIs(StatusCode::kNotFound, HasSubstr("slot=c")));
}

TEST_F(ArtifactTest, TensorsLieOnMultiplesOf64Bytes) {
  Write();
  ASSERT_OK_AND_ASSIGN(const auto reader, ArtifactReader::Open(Directory()));
  for (const auto& [name, slot] : reader->manifest().slots) {
    for (const ArtifactTensor& tensor : slot.tensors) EXPECT_EQ(tensor.offset % 64, 0u) << name;
  }
}

TEST_F(ArtifactTest, TheSameContentGivesTheSameHashAndOtherContentAnother) {
  const std::string hash = Write();
  EXPECT_EQ(Write(), hash);
  auto writer = ArtifactWriter::Create(Directory()).value();
  ASSERT_OK(writer->Add("a", Encode("int8_channel", 3), {.scheme = "int8_channel"}));
  EXPECT_NE(writer->Commit("key", "source", "nearest-1").value(), hash);
}

TEST_F(ArtifactTest, ReplacingASlotMakesTheHashOfTheLastPlan) {
  auto replaced = ArtifactWriter::Create(directory_.path() + "/replaced").value();
  ASSERT_OK(replaced->Add("a", Encode("int8_channel", 1), {.scheme = "int8_channel"}));
  ASSERT_OK(replaced->Add("a", Encode("bf16", 1), {.scheme = "bf16", .fallback = true}));
  auto direct = ArtifactWriter::Create(directory_.path() + "/direct").value();
  ASSERT_OK(direct->Add("a", Encode("bf16", 1), {.scheme = "bf16", .fallback = true}));
  EXPECT_EQ(replaced->hash(), direct->hash());
}

// What the manifest names, each tensor brought to a multiple of 64 bytes.
uint64_t ReferencedBytes(const ArtifactManifest& manifest) {
  uint64_t bytes = 0;
  for (const auto& [name, slot] : manifest.slots) {
    for (const ArtifactTensor& tensor : slot.tensors) bytes += (tensor.bytes + 63) / 64 * 64;
  }
  return bytes;
}

TEST_F(ArtifactTest, AReplacedSlotLeavesNoBytesBehind) {
  auto writer = ArtifactWriter::Create(Directory()).value();
  ASSERT_OK(writer->Add("b", Encode("int8_channel", 1), {.scheme = "int8_channel"}));
  ASSERT_OK(writer->Add("a", Encode("int8_channel", 2), {.scheme = "int8_channel"}));
  ASSERT_OK(writer->Add("b", Encode("bf16", 3), {.scheme = "bf16", .fallback = true}));
  ASSERT_OK(writer->Commit("key", "source", "nearest-1"));
  ASSERT_OK_AND_ASSIGN(const auto reader, ArtifactReader::Open(Directory()));
  const uint64_t size = Bytes("weights.bin").size();
  EXPECT_LE(size, ReferencedBytes(reader->manifest()));
  EXPECT_GT(size + 64, ReferencedBytes(reader->manifest()));
  EXPECT_FALSE(fs::exists(Directory() + "/weights.new"));
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor a, reader->Read("a"));
  ASSERT_OK_AND_ASSIGN(const QuantizedTensor b, reader->Read("b"));
  const QuantizedTensor expected_a = Encode("int8_channel", 2), expected_b = Encode("bf16", 3);
  EXPECT_EQ(std::memcmp(a.codes.data<char>(), expected_a.codes.data<char>(), a.codes.bytes()), 0);
  EXPECT_EQ(std::memcmp(a.scales.data<char>(), expected_a.scales.data<char>(), a.scales.bytes()),
            0);
  EXPECT_EQ(std::memcmp(b.codes.data<char>(), expected_b.codes.data<char>(), b.codes.bytes()), 0);
}

TEST_F(ArtifactTest, AnUncommittedArtifactLeavesNothing) {
  {
    auto writer = ArtifactWriter::Create(Directory()).value();
    ASSERT_OK(writer->Add("a", Encode("bf16", 1), {.scheme = "bf16"}));
  }
  EXPECT_TRUE(fs::is_empty(directory_.path()));
}

TEST_F(ArtifactTest, EveryFlippedByteOfTheWeightsIsFound) {
  Write();
  const std::string good = Bytes("weights.bin");
  ASSERT_OK_AND_ASSIGN(const auto manifest, ArtifactManifestFromJson(Bytes("manifest.json")));
  size_t found = 0, covered = 0;
  for (const auto& [name, slot] : manifest.slots) {
    for (const ArtifactTensor& tensor : slot.tensors) covered += tensor.bytes;
  }
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x10);
    Rewrite("weights.bin", bad);
    ASSERT_OK_AND_ASSIGN(const auto reader, ArtifactReader::Open(Directory()));
    for (const char* slot : {"a", "b"}) {
      if (absl::IsDataLoss(reader->Read(slot).status())) ++found;
    }
  }
  EXPECT_EQ(found, covered);  // all but the padding
}

TEST_F(ArtifactTest, ManifestTruncatedAtEveryByteIsDataLoss) {
  Write();
  const std::string good = Bytes("manifest.json");
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_THAT(ArtifactManifestFromJson(good.substr(0, length)), StatusIs(StatusCode::kDataLoss));
  }
}

TEST_F(ArtifactTest, EveryFlippedByteOfTheManifestIsFoundOrHarmless) {
  const std::string hash = Write();
  const std::string good = Bytes("manifest.json");
  for (size_t i = 0; i < good.size(); ++i) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x01);
    const absl::StatusOr<ArtifactManifest> manifest = ArtifactManifestFromJson(bad);
    // What still parses describes the same plan: only offsets, words and key texts may differ.
    if (manifest.ok()) {
      EXPECT_EQ(ArtifactHash(*manifest), hash);
    }
  }
}

TEST_F(ArtifactTest, HostileManifestsAreDataLoss) {
  Write();
  const nlohmann::json good = nlohmann::json::parse(Bytes("manifest.json"));
  const auto expect_loss = [](nlohmann::json bad, const char* what) {
    EXPECT_THAT(ArtifactManifestFromJson(bad.dump()),
                StatusIs(StatusCode::kDataLoss, HasSubstr(what)));
  };
  nlohmann::json bad = good;
  bad["slots"]["a"]["tensors"][0]["offset"] = uint64_t{1} << 40;
  expect_loss(bad, "outside weights.bin");
  bad = good;
  bad["slots"]["a"]["tensors"][0]["shape"] = {uint64_t{1} << 40, uint64_t{1} << 40};
  expect_loss(bad, "out of range");
  bad = good;
  bad["slots"]["a"]["tensors"][0]["shape"] = {-1, 4};
  expect_loss(bad, "out of range");
  bad = good;
  bad["slots"]["a"]["scheme"] = "bf16";
  expect_loss(bad, "artifact_hash");
  bad = good;
  bad["slots"]["a"]["tensors"][0]["dtype"] = "x";
  expect_loss(bad, "dtype");
  bad = good;
  bad["format_version"] = 2;
  expect_loss(bad, "unknown format");
  bad = good;
  bad.erase("slots");
  expect_loss(bad, "slots");
}

TEST_F(ArtifactTest, AWeightsFileOfAnotherSizeIsDataLoss) {
  Write();
  Rewrite("weights.bin", Bytes("weights.bin") + "x");
  EXPECT_THAT(ArtifactReader::Open(Directory()), StatusIs(StatusCode::kDataLoss));
  fs::remove(Directory() + "/weights.bin");
  EXPECT_THAT(ArtifactReader::Open(Directory()), StatusIs(StatusCode::kDataLoss));
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
