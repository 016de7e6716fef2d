#include "engine/lifecycle/artifact.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/engine/lifecycle/admission_fixture.h"
#include "tests/support/random_tensor.h"

namespace assay {
namespace {

namespace fs = std::filesystem;
using absl::StatusCode;
using testing::HasSubstr;

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

}  // namespace
}  // namespace assay
