// Tokens that are found in the text before anything else happens to it ("<|im_start|>", "[MASK]"):
// the leftmost, and of those the longest. Semantics of Hugging Face's AddedVocabulary. Thread rule:
// immutable once made.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/model/tokenizer/byte_trie.h"
#include "engine/model/tokenizer/regex.h"

namespace assay {

struct AddedToken {
  int32_t id = -1;
  std::string content;       // what is looked for
  bool special = false;      // only where special tokens are parsed
  bool single_word = false;  // not inside a word
  bool lstrip = false;       // swallows white space before it
  bool rstrip = false;
};

struct TextOrToken {
  TextRange range;
  int32_t id = -1;  // -1: text between tokens
};

class AddedTokens {
 public:
  AddedTokens() = default;
  explicit AddedTokens(std::vector<AddedToken> tokens);
  // All of `text`, in order, without empty pieces of text.
  std::vector<TextOrToken> Split(std::string_view text, bool parse_special) const;
  bool empty() const { return tokens_.empty(); }

 private:
  std::vector<AddedToken> tokens_;
  ByteTrie trie_;  // content -> index into tokens_
};

}  // namespace assay
