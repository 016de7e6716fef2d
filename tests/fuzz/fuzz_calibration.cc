// A calibration source of any kind: a Status of the documented codes, or a set whose ids are in the
// vocabulary and whose windows keep to their size.
#include <cstdlib>

#include "engine/lifecycle/calibration_set.h"
#include "tests/support/fake_tokenizer.h"

namespace assay {
namespace {

void Require(bool condition) {
  if (!condition) std::abort();
}

void Exercise(std::string_view bytes, const std::string& origin, const Tokenizer* tokenizer) {
  ModelSpec spec;
  spec.vocab = 64;
  spec.max_context = 32;
  const auto set = MakeCalibrationSet(bytes, origin, tokenizer, spec, {.samples = 3, .window = 16});
  if (!set.ok()) {
    Require(absl::IsInvalidArgument(set.status()) || absl::IsFailedPrecondition(set.status()));
    return;
  }
  Require(!set->samples.empty() && set->samples.size() <= 3);
  for (const TokenDocument& sample : set->samples) {
    Require(!sample.empty() && sample.size() <= 16);
    for (const int32_t id : sample) Require(id >= 0 && id < spec.vocab);
  }
}

}  // namespace
}  // namespace assay

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  // As many tokens as the model has: only then has every id a text.
  static const auto& letters = *new assay::FakeTokenizer(assay::FakeTokenizer::Letters(64, {}));
  for (const char* origin : {"a.txt", "a.jsonl", "a.npy"}) {
    assay::Exercise(bytes, origin, &letters);
    assay::Exercise(bytes, origin, nullptr);
  }
  return 0;
}
