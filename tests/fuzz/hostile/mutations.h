// Changes to the bytes of files: what bad disks, bad converters and bad people do to a checkpoint.
// The same seed gives the same changes. One thread.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <random>
#include <string>

namespace assay {

class Mutations {
 public:
  explicit Mutations(uint64_t seed) : random_(seed) {}

  // One to three changes. By the name's ending JSON is changed as JSON, too (keys dropped, given
  // twice, of another type), and so is the header of safetensors; everything else as bytes (bits
  // flipped, cut, spliced, lengths and offsets set to numbers that are hard to bear).
  std::string Apply(const std::string& name, std::string bytes);
  uint64_t Draw(uint64_t below) { return random_() % below; }

 private:
  std::string ChangeBytes(std::string bytes);
  std::string ChangeJson(std::string text);
  std::string ChangeSafetensors(std::string bytes);
  void ChangeValue(nlohmann::json& value);
  nlohmann::json OddValue(const nlohmann::json& old);
  size_t Place(size_t size);  // the beginning of a file is where its lengths are

  std::mt19937_64 random_;
};

}  // namespace assay
