// Hostile and odd GGUF files, built byte by byte. What well-formed files read as:
// checkpoint_test.cc.
#include "engine/model/gguf.h"

#include <gmock/gmock.h>

#include <cmath>
#include <cstring>

#include "tests/support/golden.h"
#include "tests/support/status_matchers.h"

namespace assay {
namespace {

using testing::AllOf;
using testing::HasSubstr;
constexpr auto kDataLoss = absl::StatusCode::kDataLoss;
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;

enum : uint32_t { kU8 = 0, kU32 = 4, kF32 = 6, kBool = 7, kString = 8, kArray = 9 };

std::span<const std::byte> BytesOf(std::string_view text) { return std::as_bytes(std::span(text)); }

template <typename T>
std::string Raw(T value) {
  std::string bytes(sizeof value, '\0');
  std::memcpy(bytes.data(), &value, sizeof value);
  return bytes;
}
std::string Text(std::string_view text) { return Raw<uint64_t>(text.size()) + std::string(text); }

struct TensorEntry {
  std::string name;
  std::vector<uint64_t> dims = {4};
  uint32_t type = 0;  // F32
  uint64_t offset = 0;
};

// A file of parts that may lie about each other.
struct GgufFile {
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::vector<std::string> pairs = {Text("general.architecture") + Raw(uint32_t{kString}) +
                                    Text("golden")};
  std::vector<TensorEntry> tensors;
  std::optional<uint64_t> num_pairs, num_tensors;
  size_t data_bytes = 64;

  void Add(std::string_view key, uint32_t type, const std::string& value) {
    pairs.push_back(Text(key) + Raw(type) + value);
  }
  std::string Bytes() const {
    std::string file = magic + Raw(version) + Raw(num_tensors.value_or(tensors.size())) +
                       Raw(num_pairs.value_or(pairs.size()));
    for (const std::string& pair : pairs) file += pair;
    for (const TensorEntry& t : tensors) {
      file += Text(t.name) + Raw(static_cast<uint32_t>(t.dims.size()));
      for (const uint64_t d : t.dims) file += Raw(d);
      file += Raw(t.type) + Raw(t.offset);
    }
    file.resize((file.size() + 31) / 32 * 32);
    for (size_t i = 0; i < data_bytes; ++i) file.push_back(static_cast<char>(i % 64));
    return file;
  }
  absl::StatusOr<CheckpointContents> Parse() const { return ParseGguf(BytesOf(Bytes())); }
};

GgufFile TwoTensors() {
  GgufFile file;
  file.Add("a.flag", kBool, Raw(uint8_t{1}));
  file.Add("a.list", kArray, Raw(uint32_t{kString}) + Raw(uint64_t{2}) + Text("x") + Text("yz"));
  file.Add("a.bytes", kArray, Raw(uint32_t{kU8}) + Raw(uint64_t{3}) + "\1\2\3");
  file.tensors = {{"first", {4, 2}, 0, 0}, {"second", {8}, 0, 32}};
  return file;
}

TEST(GgufTest, ReadsVersions2And3) {
  GgufFile file = TwoTensors();
  for (const uint32_t version : {2, 3}) {
    file.version = version;
    ASSERT_OK_AND_ASSIGN(const CheckpointContents contents, file.Parse());
    ASSERT_EQ(contents.tensors.size(), 2u);
    EXPECT_EQ(ToString(contents.tensors[0].info.shape), "[2,4]");  // reversed
  }
}

TEST(GgufTest, RefusesOtherVersionsAndMagics) {
  GgufFile file = TwoTensors();
  file.version = 1;
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, HasSubstr("version=1")));
  file.version = 0x03000000;
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, HasSubstr("big-endian")));
  file.magic = "GGML";
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, HasSubstr("'GGML'")));
}

TEST(GgufTest, FailsWhereverItIsTruncated) {
  const std::string bytes = TwoTensors().Bytes();
  ASSERT_OK(ParseGguf(BytesOf(bytes)));
  for (size_t size = 0; size < bytes.size(); ++size) {
    // A copy of exactly this size, so that a sanitizer sees a read past it.
    const std::vector<char> cut(bytes.begin(), bytes.begin() + static_cast<int64_t>(size));
    EXPECT_THAT(ParseGguf(std::as_bytes(std::span(cut))), StatusIs(kDataLoss)) << "at " << size;
  }
}

TEST(GgufTest, FailsWhereverARealFileIsTruncated) {
  const std::string bytes = ReadGolden("checkpoint/llama.gguf.xz");
  ASSERT_OK_AND_ASSIGN(const CheckpointContents contents, ParseGguf(BytesOf(bytes)));
  uint64_t begin = bytes.size(), end = 0;  // of the tensors' bytes; the padding behind them may go
  for (const StoredTensor& t : contents.tensors) {
    begin = std::min(begin, t.offset);
    end = std::max(end, t.offset + t.info.stored_bytes);
  }
  // Every byte of the header; of the values, whose parse differs in nothing but the size, some.
  for (size_t size = 0; size < end; size += size < begin ? 1 : 61) {
    ASSERT_THAT(ParseGguf(BytesOf(std::string_view(bytes).substr(0, size))), StatusIs(kDataLoss))
        << "at " << size;
  }
}

TEST(GgufTest, RefusesCountsBeyondTheFile) {
  for (const uint64_t absurd : {uint64_t{1000}, uint64_t{1} << 32, uint64_t{1} << 60, UINT64_MAX}) {
    GgufFile file = TwoTensors();
    file.num_tensors = absurd;
    EXPECT_THAT(file.Parse(), StatusIs(kDataLoss, HasSubstr("tensor table"))) << absurd;
    file = TwoTensors();
    file.num_pairs = absurd;
    EXPECT_THAT(file.Parse(), StatusIs(kDataLoss, HasSubstr("metadata pairs"))) << absurd;
    file = TwoTensors();
    file.Add("long", kArray, Raw(uint32_t{kU8}) + Raw(absurd));
    EXPECT_THAT(file.Parse(), StatusIs(kDataLoss, HasSubstr("'long'"))) << absurd;
    file = TwoTensors();
    file.Add("text", kString, Raw(absurd));
    EXPECT_THAT(file.Parse(), StatusIs(kDataLoss, HasSubstr("'text'"))) << absurd;
  }
}

TEST(GgufTest, BoundsTheElementsOfAllArraysTogether) {
  GgufFile file = TwoTensors();
  const uint64_t half = (uint64_t{1} << 22) + 1;
  file.Add("one", kArray, Raw(uint32_t{kU8}) + Raw(half) + std::string(half, 'x'));
  EXPECT_OK(file.Parse());
  file.Add("two", kArray, Raw(uint32_t{kU8}) + Raw(half) + std::string(half, 'x'));
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, AllOf(HasSubstr("'two'"), HasSubstr("too long"))));
}

TEST(GgufTest, RefusesShapesThatOverflow) {
  for (const std::vector<uint64_t>& dims :
       std::vector<std::vector<uint64_t>>{{uint64_t{1} << 60},
                                          {uint64_t{1} << 32, uint64_t{1} << 32},
                                          {0, uint64_t{1} << 40, uint64_t{1} << 40},
                                          {UINT64_MAX, 2}}) {
    GgufFile file = TwoTensors();
    file.tensors[1].dims = dims;
    EXPECT_THAT(file.Parse(),
                StatusIs(kInvalid, AllOf(HasSubstr("'second'"), HasSubstr("absurdly"))));
  }
}

TEST(GgufTest, RefusesFiveDimensions) {
  GgufFile file = TwoTensors();
  file.tensors[0].dims = {1, 1, 1, 1, 4};
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, AllOf(HasSubstr("'first'"), HasSubstr("rank=5"))));
}

TEST(GgufTest, RefusesOverlapAndDataOutsideOfTheFile) {
  GgufFile file = TwoTensors();
  file.tensors[1].offset = 0;
  EXPECT_THAT(file.Parse(), StatusIs(kDataLoss, AllOf(HasSubstr("'first'"), HasSubstr("'second'"),
                                                      HasSubstr("overlaps"))));
  file.tensors[1].offset = 64;
  EXPECT_THAT(file.Parse(),
              StatusIs(kDataLoss, AllOf(HasSubstr("'second'"), HasSubstr("outside"))));
  file.tensors[1].offset = UINT64_MAX - 31;
  EXPECT_THAT(file.Parse(), StatusIs(kDataLoss, HasSubstr("'second'")));
  file.tensors[1].offset = 33;
  EXPECT_THAT(file.Parse(), StatusIs(kDataLoss, HasSubstr("not aligned")));
}

TEST(GgufTest, RefusesUnusableAlignments) {
  for (const uint32_t alignment : {0u, 3u, 48u, 0xffffffffu}) {
    GgufFile file = TwoTensors();
    file.Add("general.alignment", kU32, Raw(alignment));
    EXPECT_THAT(file.Parse(), StatusIs(kInvalid, HasSubstr("general.alignment"))) << alignment;
  }
  GgufFile text = TwoTensors();
  text.Add("general.alignment", kString, Text("32"));
  EXPECT_THAT(text.Parse(), StatusIs(kInvalid, HasSubstr("value=string")));
  GgufFile huge = TwoTensors();
  huge.Add("general.alignment", kU32, Raw(uint32_t{1} << 30));
  EXPECT_THAT(huge.Parse(), StatusIs(kDataLoss));
}

TEST(GgufTest, RefusesDuplicates) {
  GgufFile file = TwoTensors();
  file.Add("a.flag", kBool, Raw(uint8_t{0}));
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, AllOf(HasSubstr("'a.flag'"), HasSubstr("twice"))));
  file = TwoTensors();
  file.tensors[1].name = "first";
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, AllOf(HasSubstr("'first'"), HasSubstr("twice"))));
}

TEST(GgufTest, RefusesTwoNamesThatBecomeOne) {
  GgufFile file = TwoTensors();
  file.pairs[0] = Text("general.architecture") + Raw(uint32_t{kString}) + Text("qwen2");
  file.tensors[0].name = "output.weight";
  file.tensors[1].name = "lm_head.weight";
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, HasSubstr("'lm_head.weight' occurs twice")));
}

TEST(GgufTest, RefusesTextThatIsNotUtf8) {
  GgufFile file = TwoTensors();
  file.tensors[0].name = "caf\xe9";
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, AllOf(HasSubstr("'caf\\xe9'"), HasSubstr("UTF-8"))));
  file = TwoTensors();
  file.Add("k\xff", kBool, Raw(uint8_t{1}));
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, HasSubstr("'k\\xff'")));
  file = TwoTensors();
  file.Add("tokenizer.tokens", kArray,
           Raw(uint32_t{kString}) + Raw(uint64_t{1}) + Text("\xed\xa0\x80"));  // a surrogate
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, HasSubstr("'tokenizer.tokens'")));
}

TEST(GgufTest, RefusesUnknownAndNestedTypes) {
  GgufFile file = TwoTensors();
  file.Add("odd", 13, "");
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, AllOf(HasSubstr("'odd'"), HasSubstr("type=13"))));
  file = TwoTensors();
  file.Add("nested", kArray, Raw(uint32_t{kArray}) + Raw(uint64_t{1}));
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, AllOf(HasSubstr("'nested'"), HasSubstr("type=9"))));
  file = TwoTensors();
  file.tensors[0].type = 5;
  EXPECT_THAT(file.Parse(),
              StatusIs(kInvalid, AllOf(HasSubstr("'first'"), HasSubstr("ggml_type=5"))));
}

TEST(GgufTest, RefusesRowsThatAreNotWholeBlocks) {
  GgufFile file = TwoTensors();
  file.tensors[0].type = 2;  // Q4_0 of rows of 4
  EXPECT_THAT(file.Parse(),
              StatusIs(kInvalid, AllOf(HasSubstr("'first'"), HasSubstr("blocks of 32"))));
}

TEST(GgufTest, OpensAFileWithATypeThatItCannotRead) {
  GgufFile file;
  file.tensors = {{"exotic", {32}, 20, 0}};  // IQ4_NL
  ASSERT_OK_AND_ASSIGN(const CheckpointContents contents, file.Parse());
  std::vector<float> out(32);
  EXPECT_THAT(DecodeRows(contents.tensors[0], BytesOf(file.Bytes()), 0, 32, out),
              StatusIs(absl::StatusCode::kUnimplemented,
                       AllOf(HasSubstr("'exotic'"), HasSubstr("iq4_nl"))));
}

GgufFile LlamaWithHeads(uint32_t type, const std::string& heads) {
  GgufFile file;
  file.pairs[0] = Text("general.architecture") + Raw(uint32_t{kString}) + Text("llama");
  file.Add("llama.attention.head_count", type, heads);
  file.tensors = {{"blk.0.attn_q.weight", {2, 8}, 0, 0}};
  return file;
}

TEST(GgufTest, UndoesTheRowPermutationOfQ) {
  GgufFile file = LlamaWithHeads(kU32, Raw(uint32_t{2}));
  const std::string bytes = file.Bytes();
  ASSERT_OK_AND_ASSIGN(const CheckpointContents contents, ParseGguf(BytesOf(bytes)));
  std::vector<float> stored(16), read(16);
  std::memcpy(stored.data(), bytes.data() + contents.tensors[0].offset, 64);
  ASSERT_OK(DecodeRows(contents.tensors[0], BytesOf(bytes), 0, 8, read));
  // Two heads of four rows; stored (0 2 1 3): each pair (j, j + 2) of a head lies side by side.
  const int row_of[8] = {0, 2, 1, 3, 4, 6, 5, 7};
  for (int row = 0; row < 8; ++row) {
    EXPECT_EQ(std::memcmp(&read[2 * row], &stored[2 * row_of[row]], 8), 0) << "row " << row;
  }
}

TEST(GgufTest, RefusesHeadsThatDoNotDivideTheRows) {
  for (const uint32_t heads : {0u, 3u, 8u, 0xffffffffu}) {
    EXPECT_THAT(LlamaWithHeads(kU32, Raw(heads)).Parse(),
                StatusIs(kInvalid, HasSubstr("'blk.0.attn_q.weight'")))
        << heads;
  }
  EXPECT_THAT(LlamaWithHeads(kString, Text("4")).Parse(),
              StatusIs(kInvalid, HasSubstr("wrong type")));
  EXPECT_THAT(LlamaWithHeads(kArray, Raw(uint32_t{kU32}) + Raw(uint64_t{0})).Parse(),
              StatusIs(kInvalid, HasSubstr("wrong type")));
}

TEST(GgufTest, TakesHeadsPerLayer) {
  const std::string lists =
      Raw(uint32_t{kU32}) + Raw(uint64_t{2}) + Raw(uint32_t{4}) + Raw(uint32_t{2});
  GgufFile file = LlamaWithHeads(kArray, lists);
  ASSERT_OK_AND_ASSIGN(CheckpointContents contents, file.Parse());
  EXPECT_EQ(contents.tensors[0].interleaved_heads, 4);
  file.tensors[0].name = "blk.1.attn_q.weight";
  ASSERT_OK_AND_ASSIGN(contents, file.Parse());
  EXPECT_EQ(contents.tensors[0].interleaved_heads, 2);
  file.tensors[0].name = "blk.2.attn_q.weight";
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, HasSubstr("num_attention_heads=0")));
}

nlohmann::json ConfigWith(const std::vector<std::pair<std::string, std::string>>& texts,
                          const std::vector<std::pair<std::string, float>>& reals) {
  GgufFile file;
  file.pairs[0] = Text("general.architecture") + Raw(uint32_t{kString}) + Text("llama");
  for (const auto& [key, value] : texts) file.Add("llama." + key, kString, Text(value));
  for (const auto& [key, value] : reals) file.Add("llama." + key, kF32, Raw(value));
  const auto contents = file.Parse();
  EXPECT_THAT(contents, IsOk());
  return contents.ok() ? contents->config : nlohmann::json();
}

TEST(GgufConfigTest, RopeScalingIsLinearUnlessTheFileSaysOtherwise) {
  const nlohmann::json linear = nlohmann::json::parse(R"({"rope_type":"linear","factor":4.0})");
  EXPECT_EQ(ConfigWith({}, {{"rope.scale_linear", 4.0f}})["rope_scaling"], linear);
  EXPECT_EQ(ConfigWith({}, {{"rope.scaling.factor", 4.0f}})["rope_scaling"], linear);
  EXPECT_FALSE(ConfigWith({{"rope.scaling.type", "none"}}, {{"rope.scaling.factor", 4.0f}})
                   .contains("rope_scaling"));
  EXPECT_FALSE(ConfigWith({}, {}).contains("rope_scaling"));
}

TEST(GgufConfigTest, YarnsAttentionFactorIncludesItsOwnCorrection) {
  const nlohmann::json config =
      ConfigWith({{"rope.scaling.type", "yarn"}},
                 {{"rope.scaling.factor", 4.0f}, {"rope.scaling.attn_factor", 2.0f}});
  // transformers' default for factor 4 is 0.1 ln 4 + 1; the file asks for twice that.
  EXPECT_NEAR(config["rope_scaling"]["attention_factor"].get<double>(),
              2 * (0.1 * std::log(4.0) + 1), 1e-12);
}

TEST(GgufConfigTest, SaysHowManyDimensionsOfAHeadRotate) {
  GgufFile file = LlamaWithHeads(kU32, Raw(uint32_t{1}));
  file.Add("llama.embedding_length", kU32, Raw(uint32_t{8}));
  file.Add("llama.rope.dimension_count", kU32, Raw(uint32_t{4}));
  ASSERT_OK_AND_ASSIGN(const CheckpointContents contents, file.Parse());
  EXPECT_EQ(contents.config["partial_rotary_factor"], 0.5);
}

TEST(GgufTest, NeedsAnArchitecture) {
  GgufFile file;
  file.pairs.clear();
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, HasSubstr("general.architecture")));
}

TEST(GgufTest, RefusesAPartOfASplitFile) {
  GgufFile file = TwoTensors();
  file.Add("split.count", kU32, Raw(uint32_t{3}));
  EXPECT_THAT(file.Parse(), StatusIs(kInvalid, HasSubstr("--merge")));
}

}  // namespace
}  // namespace assay
