// SentencePiece's normalization rules as a checkpoint has them: the length of a text, the text, the
// rules.
#include "engine/model/tokenizer/normalizer.h"
#include "engine/model/tokenizer/precompiled_charsmap.h"
#include "tests/fuzz/require.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes = assay::TextOf(data + 1, size - 1);
  const std::string_view text = bytes.substr(0, data[0]);
  const auto map = assay::PrecompiledCharsmap::Parse(bytes.substr(text.size()));
  assay::RequireCode(map.status(), absl::StatusCode::kInvalidArgument);
  if (!map.ok()) return 0;
  for (const auto& out : {map->NormalizeByLongest(text), map->NormalizeByGrapheme(text)}) {
    assay::RequireCode(out.status(), absl::StatusCode::kResourceExhausted);
    assay::Require(!out.ok() || out->size() <= assay::MostNormalized(text.size()), "a bound");
  }
  return 0;
}
