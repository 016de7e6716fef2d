// What "tokenizer.ggml.pre" stands for: how a byte-level BPE cuts text before it merges. GGUF
// stores only a name; the expressions are those of the tokenizer.json files that the names were
// given to.
#pragma once
#include <optional>
#include <span>
#include <string_view>

namespace assay {

struct GgufPreTokenizer {
  std::span<const std::string_view>
      patterns;  // each isolates its matches in the pieces of the one before
  bool ignore_merges = false;
  bool add_bos = false;  // unless the file says otherwise
};

// nullopt for a name that is not known.
std::optional<GgufPreTokenizer> FindGgufPreTokenizer(std::string_view name);

}  // namespace assay
