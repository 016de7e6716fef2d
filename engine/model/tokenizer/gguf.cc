// The "tokenizer." keys of a GGUF file (docs/gguf.md of ggml), with the defaults that llama.cpp
// gives to absent ones.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model/tokenizer/gguf_pre_tokenizers.h"
#include "engine/model/tokenizer/precompiled_charsmap.h"
#include "engine/model/tokenizer/text_tokenizer.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

constexpr std::string_view kMark = "\xE2\x96\x81";  // U+2581, SentencePiece's blank

enum GgufTokenType {
  kNormalType = 1,
  kUnknownType,
  kControlType,
  kUserDefinedType,
  kUnusedType,
  kByteType
};

struct SpecialIds {
  std::optional<int32_t> bos, eos, unknown, separator, classifier;
};

struct GgufVocabulary {
  std::unique_ptr<const Vocabulary> vocabulary;
  std::vector<int> types;  // GgufTokenType
  SpecialIds special;
};

absl::StatusOr<std::optional<int32_t>> IdAt(const Json& metadata, std::string_view key,
                                            int64_t num_tokens) {
  const Json& value = Field(metadata, key);
  if (value.is_null()) return std::nullopt;
  ASSIGN_OR_RETURN(const int32_t id, ToTokenId(value, num_tokens, key));
  return id;
}

absl::StatusOr<std::vector<std::string>> ReadTexts(const Json& metadata) {
  ASSIGN_OR_RETURN(const Json* list, RequireArray(metadata, "tokenizer.ggml.tokens", ""));
  std::vector<std::string> texts;
  texts.reserve(list->size());
  for (const Json& text : *list) {
    if (!text.is_string()) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.tokens[", texts.size(),
                                                     "] must be a string: ", Shown(text)));
    }
    texts.push_back(text.get<std::string>());
  }
  return texts;
}

absl::StatusOr<std::vector<int>> ReadTypes(const Json& metadata, size_t num_tokens) {
  std::vector<int> types(num_tokens, kNormalType);
  if (Field(metadata, "tokenizer.ggml.token_type").is_null()) return types;
  ASSIGN_OR_RETURN(const Json* list, RequireArray(metadata, "tokenizer.ggml.token_type", ""));
  if (list->size() != num_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.token_type has ", list->size(),
                                                   " entries for ", num_tokens, " tokens"));
  }
  for (size_t i = 0; i < num_tokens; ++i) {
    if (!(*list)[i].is_number_integer()) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.token_type[", i,
                                                     "] must be an integer: ", Shown((*list)[i])));
    }
    types[i] = static_cast<int>((*list)[i].get<int64_t>());
  }
  return types;
}

TokenKind KindOf(int type) {
  if (type == kControlType || type == kUnknownType) return TokenKind::kSpecial;
  return type == kUserDefinedType ? TokenKind::kAdded : TokenKind::kNormal;
}

// What llama.cpp assumes of a "llama" vocabulary that does not say: <unk>, <s>, </s> come first.
void AssumeSentencePieceIds(const std::vector<int>& types, SpecialIds* special) {
  const auto assume = [&](size_t id, std::optional<int32_t>* target) {
    const bool fits = id < types.size() && (types[id] == kControlType || types[id] == kUnknownType);
    if (!target->has_value() && fits) *target = static_cast<int32_t>(id);
  };
  assume(0, &special->unknown);
  assume(1, &special->bos);
  assume(2, &special->eos);
}

absl::StatusOr<GgufVocabulary> ReadVocabulary(const Json& metadata,
                                              std::vector<std::string> texts) {
  GgufVocabulary result;
  const bool is_llama = Field(metadata, "tokenizer.ggml.model") == "llama";
  const auto num_tokens = static_cast<int64_t>(texts.size());
  ASSIGN_OR_RETURN(result.types, ReadTypes(metadata, texts.size()));
  std::vector<TokenKind> kinds;
  kinds.reserve(texts.size());
  for (const int type : result.types) kinds.push_back(KindOf(type));
  SpecialIds& special = result.special;
  ASSIGN_OR_RETURN(special.bos, IdAt(metadata, "tokenizer.ggml.bos_token_id", num_tokens));
  ASSIGN_OR_RETURN(special.eos, IdAt(metadata, "tokenizer.ggml.eos_token_id", num_tokens));
  ASSIGN_OR_RETURN(special.unknown, IdAt(metadata, "tokenizer.ggml.unknown_token_id", num_tokens));
  ASSIGN_OR_RETURN(special.classifier, IdAt(metadata, "tokenizer.ggml.cls_token_id", num_tokens));
  // llama.cpp's converter misspelt the key for years.
  ASSIGN_OR_RETURN(special.separator,
                   IdAt(metadata, "tokenizer.ggml.seperator_token_id", num_tokens));
  if (!special.separator.has_value()) {
    ASSIGN_OR_RETURN(special.separator,
                     IdAt(metadata, "tokenizer.ggml.separator_token_id", num_tokens));
  }
  if (is_llama) AssumeSentencePieceIds(result.types, &special);
  // What ends a generation is a control token, whatever type the converter gave it.
  for (const std::optional<int32_t>& id : {special.bos, special.eos}) {
    if (id.has_value()) kinds[*id] = TokenKind::kSpecial;
  }
  for (size_t id = 0; id < texts.size(); ++id) {
    const auto ends = EndTokenTexts();
    if (kinds[id] == TokenKind::kAdded &&
        std::find(ends.begin(), ends.end(), texts[id]) != ends.end()) {
      kinds[id] = TokenKind::kSpecial;
    }
  }
  ASSIGN_OR_RETURN(Vocabulary vocabulary, Vocabulary::Create(std::move(texts), std::move(kinds)));
  result.vocabulary = std::make_unique<const Vocabulary>(std::move(vocabulary));
  return result;
}

AddedTokens CollectAdded(const Vocabulary& vocabulary) {
  std::vector<AddedToken> added;
  for (int32_t id = 0; id < vocabulary.size(); ++id) {
    const TokenKind kind = vocabulary.kind(id);
    if (kind == TokenKind::kNormal) continue;
    added.push_back({.id = id,
                     .content = std::string(vocabulary.text(id)),
                     .special = kind == TokenKind::kSpecial});
  }
  return AddedTokens(std::move(added));
}

absl::StatusOr<std::vector<double>> ReadScores(const Json& metadata, size_t num_tokens) {
  ASSIGN_OR_RETURN(const Json* list, RequireArray(metadata, "tokenizer.ggml.scores", ""));
  if (list->size() != num_tokens) {
    return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.scores has ", list->size(),
                                                   " entries for ", num_tokens, " tokens"));
  }
  std::vector<double> scores;
  scores.reserve(num_tokens);
  for (const Json& score : *list) {
    if (!score.is_number()) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.scores[", scores.size(),
                                                     "] must be a number: ", Shown(score)));
    }
    scores.push_back(score.get<double>());
  }
  return scores;
}

struct BosEos {
  bool bos, eos;
};

// add_bos_token and add_eos_token over the family's defaults. InvalidArgument when the file asks
// for a token it lacks.
absl::Status AddBosEos(const Json& metadata, BosEos defaults, const SpecialIds& special,
                       TokenizerParts* parts) {
  ASSIGN_OR_RETURN(const bool bos,
                   OptionalBool(metadata, "tokenizer.ggml.add_bos_token", defaults.bos));
  ASSIGN_OR_RETURN(const bool eos,
                   OptionalBool(metadata, "tokenizer.ggml.add_eos_token", defaults.eos));
  const bool explicit_bos = !Field(metadata, "tokenizer.ggml.add_bos_token").is_null();
  const bool explicit_eos = !Field(metadata, "tokenizer.ggml.add_eos_token").is_null();
  if ((bos && explicit_bos && !special.bos.has_value()) ||
      (eos && explicit_eos && !special.eos.has_value())) {
    return absl::InvalidArgumentError(
        "tokenizer.ggml.add_bos_token or add_eos_token is set without the token's id");
  }
  if (bos && special.bos.has_value()) parts->before.push_back(*special.bos);
  if (eos && special.eos.has_value()) parts->after.push_back(*special.eos);
  return absl::OkStatus();
}

absl::Status AddReplace(const Json& pattern, std::string_view content, Normalizer* normalizer) {
  ASSIGN_OR_RETURN(Replacer replacer, MakeReplacer(pattern, content));
  normalizer->AddReplace(std::move(replacer));
  return absl::OkStatus();
}

absl::Status AddMarkDecoder(bool has_prefix, Decoder* decoder) {
  RETURN_IF_ERROR(decoder->AddReplace({{"String", std::string(kMark)}}, " "));
  decoder->AddByteFallback();
  decoder->AddFuse();
  if (has_prefix) decoder->AddStrip(" ", 1, 0);
  return absl::OkStatus();
}

absl::StatusOr<TokenizerParts> SentencePieceParts(const Json& metadata, GgufVocabulary read) {
  TokenizerParts parts;
  parts.vocabulary = std::move(read.vocabulary);
  ASSIGN_OR_RETURN(const std::vector<double> scores, ReadScores(metadata, read.types.size()));
  SentencePieceBpeOptions options{.scores = {scores.begin(), scores.end()},
                                  .unknown_id = read.special.unknown};
  ASSIGN_OR_RETURN(parts.model, MakeSentencePieceBpeModel(parts.vocabulary.get(), options));
  ASSIGN_OR_RETURN(const bool prefix,
                   OptionalBool(metadata, "tokenizer.ggml.add_space_prefix", true));
  if (prefix) parts.normalizer.AddPrepend(kMark);
  RETURN_IF_ERROR(AddReplace({{"String", " "}}, kMark, &parts.normalizer));
  RETURN_IF_ERROR(AddMarkDecoder(prefix, &parts.decoder));
  RETURN_IF_ERROR(AddBosEos(metadata, {.bos = true, .eos = false}, read.special, &parts));
  return parts;
}

// T5: normalization rules compiled into the file, then a unigram model.
absl::Status AddUnigramNormalizer(const Json& metadata, bool prefix, Normalizer* normalizer) {
  const Json& charsmap = Field(metadata, "tokenizer.ggml.precompiled_charsmap");
  if (!charsmap.is_null()) {
    ASSIGN_OR_RETURN(const Json* list,
                     RequireArray(metadata, "tokenizer.ggml.precompiled_charsmap", ""));
    std::string bytes;
    for (const Json& byte : *list) {
      if (!byte.is_number_integer()) {
        return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.precompiled_charsmap[",
                                                       bytes.size(),
                                                       "] must be a byte: ", Shown(byte)));
      }
      bytes += static_cast<char>(byte.get<int64_t>());
    }
    ASSIGN_OR_RETURN(PrecompiledCharsmap parsed, PrecompiledCharsmap::Parse(bytes));
    auto map = std::make_shared<const PrecompiledCharsmap>(std::move(parsed));
    normalizer->AddStep([map](std::string* text) -> absl::Status {
      ASSIGN_OR_RETURN(*text, map->NormalizeByLongest(*text));
      return absl::OkStatus();
    });
  }
  ASSIGN_OR_RETURN(const bool merge_spaces,
                   OptionalBool(metadata, "tokenizer.ggml.remove_extra_whitespaces", false));
  if (merge_spaces) {
    RETURN_IF_ERROR(AddReplace({{"Regex", R"(\A +| +\z|(?<= ) +)"}}, "", normalizer));
  }
  if (prefix) normalizer->AddPrepend(kMark);
  return AddReplace({{"String", " "}}, kMark, normalizer);
}

absl::StatusOr<TokenizerParts> UnigramParts(const Json& metadata, GgufVocabulary read) {
  TokenizerParts parts;
  parts.vocabulary = std::move(read.vocabulary);
  UnigramOptions options;
  ASSIGN_OR_RETURN(options.scores, ReadScores(metadata, read.types.size()));
  options.unknown_id = read.special.unknown.value_or(2);  // T5's, when the file does not say
  if (!parts.vocabulary->Contains(*options.unknown_id)) {
    return absl::InvalidArgumentError("tokenizer.ggml.unknown_token_id is missing");
  }
  for (size_t id = 0; id < read.types.size(); ++id) {
    const int type = read.types[id];
    options.usable.push_back(type == kNormalType || type == kUserDefinedType ||
                             type == kUnusedType);
    if (type == kUserDefinedType) options.scores[id] = 0;  // always worth taking
  }
  ASSIGN_OR_RETURN(parts.model, MakeUnigramModel(parts.vocabulary.get(), std::move(options)));
  ASSIGN_OR_RETURN(const bool prefix,
                   OptionalBool(metadata, "tokenizer.ggml.add_space_prefix", true));
  RETURN_IF_ERROR(AddUnigramNormalizer(metadata, prefix, &parts.normalizer));
  RETURN_IF_ERROR(AddMarkDecoder(prefix, &parts.decoder));
  RETURN_IF_ERROR(AddBosEos(metadata, {.bos = false, .eos = true}, read.special, &parts));
  return parts;
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ReadMerges(const Json& metadata) {
  ASSIGN_OR_RETURN(const Json* list, RequireArray(metadata, "tokenizer.ggml.merges", ""));
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(list->size());
  for (const Json& merge : *list) {
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    const size_t blank = text.find(' ', 1);
    if (blank == std::string::npos || blank + 1 == text.size()) {
      return absl::InvalidArgumentError(absl::StrCat("tokenizer.ggml.merges[", merges.size(),
                                                     "] must be two tokens: ", Shown(merge)));
    }
    merges.emplace_back(text.substr(0, blank), text.substr(blank + 1));
  }
  return merges;
}

absl::StatusOr<TokenizerParts> BpeParts(const Json& metadata, GgufVocabulary read) {
  ASSIGN_OR_RETURN(const std::string pre,
                   OptionalString(metadata, "tokenizer.ggml.pre", "default"));
  const std::optional<GgufPreTokenizer> cut = FindGgufPreTokenizer(pre);
  if (!cut.has_value()) {
    return absl::UnimplementedError(
        absl::StrCat("tokenizer.ggml.pre ", Printable(pre), " is not supported"));
  }
  TokenizerParts parts;
  parts.vocabulary = std::move(read.vocabulary);
  BpeOptions options;
  ASSIGN_OR_RETURN(options.merges, ReadMerges(metadata));
  options.ignore_merges = cut->ignore_merges;
  ASSIGN_OR_RETURN(parts.model, MakeBpeModel(parts.vocabulary.get(), options));
  for (const std::string_view pattern : cut->patterns) {
    RETURN_IF_ERROR(parts.pre_tokenizer.AddRegexSplit(pattern, Regex::Syntax::kPattern,
                                                      SplitBehavior::kIsolated, false));
  }
  parts.pre_tokenizer.AddByteLevel();
  parts.decoder.AddByteLevel();
  RETURN_IF_ERROR(AddBosEos(metadata, {.bos = cut->add_bos, .eos = false}, read.special, &parts));
  return parts;
}

// The converter wrote "word" as "(U+2581)word" and "##piece" as "piece": back to the form of
// WordPiece.
std::string WordPieceText(const std::string& text, int type) {
  if (type != kNormalType || (text.size() > 1 && text.front() == '[' && text.back() == ']')) {
    return text;
  }
  return text.compare(0, kMark.size(), kMark) == 0 ? text.substr(kMark.size()) : "##" + text;
}

absl::StatusOr<TokenizerParts> BertParts(GgufVocabulary read) {
  const SpecialIds& special = read.special;
  const std::optional<int32_t> unknown =
      special.unknown.has_value() ? special.unknown : read.vocabulary->Find("[UNK]");
  const std::optional<int32_t> first =
      special.classifier.has_value() ? special.classifier : special.bos;
  const std::optional<int32_t> last =
      special.separator.has_value() ? special.separator : special.eos;
  if (!unknown.has_value() || !first.has_value() || !last.has_value()) {
    return absl::InvalidArgumentError(
        "a bert tokenizer needs tokenizer.ggml.unknown_token_id, cls_token_id and "
        "seperator_token_id");
  }
  TokenizerParts parts;
  parts.vocabulary = std::move(read.vocabulary);
  parts.model = MakeWordPieceModel(parts.vocabulary.get(), {.unknown_id = *unknown});
  parts.normalizer.AddBert({});
  parts.pre_tokenizer.AddCharacterSplit(IsWhitespace, SplitBehavior::kRemoved);
  parts.pre_tokenizer.AddCharacterSplit(IsPunctuation, SplitBehavior::kIsolated);
  parts.decoder.AddWordPiece("##", true);
  parts.before.push_back(*first);
  parts.after.push_back(*last);
  return parts;
}

absl::StatusOr<TokenizerParts> PartsOfModel(const std::string& model, const Json& metadata,
                                            GgufVocabulary read) {
  if (model == "llama") return SentencePieceParts(metadata, std::move(read));
  if (model == "gpt2") return BpeParts(metadata, std::move(read));
  if (model == "t5") return UnigramParts(metadata, std::move(read));
  return BertParts(std::move(read));
}

}  // namespace

absl::StatusOr<TokenizerParts> PartsFromGguf(const Json& metadata) {
  ASSIGN_OR_RETURN(const std::string model, RequireString(metadata, "tokenizer.ggml.model", ""));
  if (model != "llama" && model != "gpt2" && model != "t5" && model != "bert") {
    return absl::UnimplementedError(
        absl::StrCat("tokenizer.ggml.model ", Printable(model), " is not supported"));
  }
  ASSIGN_OR_RETURN(std::vector<std::string> texts, ReadTexts(metadata));
  if (model == "bert") {
    ASSIGN_OR_RETURN(const std::vector<int> types, ReadTypes(metadata, texts.size()));
    for (size_t i = 0; i < texts.size(); ++i) texts[i] = WordPieceText(texts[i], types[i]);
  }
  ASSIGN_OR_RETURN(GgufVocabulary read, ReadVocabulary(metadata, std::move(texts)));
  const SpecialIds special = read.special;
  ASSIGN_OR_RETURN(TokenizerParts parts, PartsOfModel(model, metadata, std::move(read)));
  const Vocabulary& vocabulary = *parts.vocabulary;
  parts.added = CollectAdded(vocabulary);
  parts.end_tokens = FindEndTokens(vocabulary, special.eos);
  const auto text = [&](std::optional<int32_t> id) {
    return id.has_value() ? std::string(vocabulary.text(*id)) : "";
  };
  ASSIGN_OR_RETURN(const std::string jinja,
                   OptionalString(metadata, "tokenizer.chat_template", ""));
  parts.chat_template = ChatTemplate(jinja, {.bos = text(special.bos), .eos = text(special.eos)});
  return parts;
}

}  // namespace assay
