#include "tests/fuzz/hostile/mutations.h"

#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <set>

namespace assay {
namespace {

TEST(MutationsTest, TheSameSeedGivesTheSameChange) {
  const std::string text = R"({"a": 1, "b": [1, 2, {"c": "d"}]})";
  for (uint64_t seed = 0; seed < 50; ++seed) {
    EXPECT_EQ(Mutations(seed).Apply("x.json", text), Mutations(seed).Apply("x.json", text));
  }
}

TEST(MutationsTest, NearlyEverySeedGivesAnother) {
  std::set<std::string> seen;
  for (uint64_t seed = 0; seed < 200; ++seed)
    seen.insert(Mutations(seed).Apply("x.bin", std::string(5000, 'x')));
  EXPECT_GT(seen.size(), 150u);
}

TEST(MutationsTest, JsonLosesKeysHasThemTwiceAndOfOtherTypes) {
  const nlohmann::json sound = {{"a", 1}, {"b", "text"}};
  int lost = 0, twice = 0, other_type = 0, no_json = 0;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    const std::string text = Mutations(seed).Apply("x.json", sound.dump());
    const auto changed = nlohmann::json::parse(text, nullptr, false);
    const size_t first = text.find("\"a\":");
    if (first != std::string::npos && text.find("\"a\":", first + 1) != std::string::npos) ++twice;
    if (!changed.is_object()) {
      ++no_json;
    } else if (!changed.contains("a")) {
      ++lost;
    } else if (!changed["a"].is_number()) {
      ++other_type;
    }
  }
  for (const int count : {lost, twice, other_type, no_json}) EXPECT_GT(count, 5);
}

TEST(MutationsTest, TheHeaderOfSafetensorsStaysAsLongAsItSays) {
  const std::string header = R"({"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})";
  const uint64_t length = header.size();
  const std::string sound =
      std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + "data";
  int as_long = 0;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::string changed = Mutations(seed).Apply("x.safetensors", sound);
    uint64_t says = 0;
    if (changed.size() < sizeof(says) || changed == sound) continue;
    std::memcpy(&says, changed.data(), sizeof(says));
    as_long += says + sizeof(says) + 4 == changed.size();
  }
  EXPECT_GT(as_long, 20);
}

}  // namespace
}  // namespace assay
