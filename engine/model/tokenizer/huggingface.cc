// tokenizer.json, as Hugging Face tokenizers writes it, with the few fields of
// tokenizer_config.json that it lacks.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "engine/model/tokenizer/text_tokenizer.h"

namespace assay {
namespace {

struct AddedEntry {
  AddedToken token;
  bool normalized = false;
};

// Everything that has an id, before the vocabulary is made.
struct Ids {
  std::vector<std::string> texts;
  std::vector<TokenKind> kinds;
};

absl::StatusOr<std::vector<AddedEntry>> ParseAddedTokens(const Json& tokenizer) {
  std::vector<AddedEntry> entries;
  const Json& list = Field(tokenizer, "added_tokens");
  if (list.is_null()) return entries;
  ASSIGN_OR_RETURN(const Json* array, RequireArray(tokenizer, "added_tokens", "tokenizer"));
  for (const Json& json : *array) {
    AddedEntry entry;
    ASSIGN_OR_RETURN(entry.token.id, ToTokenId(Field(json, "id"), INT32_MAX, "added_tokens.id"));
    ASSIGN_OR_RETURN(entry.token.content, RequireString(json, "content", "added_tokens"));
    ASSIGN_OR_RETURN(entry.token.special, OptionalBool(json, "special", false));
    ASSIGN_OR_RETURN(entry.token.single_word, OptionalBool(json, "single_word", false));
    ASSIGN_OR_RETURN(entry.token.lstrip, OptionalBool(json, "lstrip", false));
    ASSIGN_OR_RETURN(entry.token.rstrip, OptionalBool(json, "rstrip", false));
    ASSIGN_OR_RETURN(entry.normalized, OptionalBool(json, "normalized", !entry.token.special));
    entries.push_back(std::move(entry));
  }
  return entries;
}

// (text, id) of the model's own vocabulary: an object, or for Unigram an array of [text, score].
absl::StatusOr<std::vector<std::pair<std::string, int64_t>>> ModelTokens(const Json& model,
                                                                         bool is_unigram) {
  std::vector<std::pair<std::string, int64_t>> tokens;
  if (is_unigram) {
    ASSIGN_OR_RETURN(const Json* vocab, RequireArray(model, "vocab", "model"));
    for (const Json& entry : *vocab) {
      if (!entry.is_array() || entry.size() != 2 || !entry[0].is_string() ||
          !entry[1].is_number()) {
        return absl::InvalidArgumentError(
            absl::StrCat("model.vocab[", tokens.size(), "] must be [text, score]: ", Shown(entry)));
      }
      tokens.emplace_back(entry[0].get<std::string>(), tokens.size());
    }
    return tokens;
  }
  ASSIGN_OR_RETURN(const Json* vocab, RequireObject(model, "vocab", "model"));
  tokens.reserve(vocab->size());
  for (const auto& [text, id] : vocab->items()) {
    ASSIGN_OR_RETURN(const int32_t value,
                     ToTokenId(id, INT32_MAX, absl::StrCat("model.vocab of ", Printable(text))));
    tokens.emplace_back(text, value);
  }
  return tokens;
}

// Ids must be 0..n-1, each given once: every one of n tokens has an id below n and no two share
// one.
absl::StatusOr<Ids> CollectIds(std::vector<std::pair<std::string, int64_t>> tokens,
                               const std::vector<AddedEntry>& added) {
  std::vector<std::pair<std::string_view, int64_t>> by_text(tokens.begin(), tokens.end());
  std::sort(by_text.begin(), by_text.end());
  std::vector<std::pair<std::string, int64_t>> extra;
  for (const AddedEntry& entry : added) {
    const std::string_view text = entry.token.content;
    const auto found = std::lower_bound(by_text.begin(), by_text.end(),
                                        std::pair<std::string_view, int64_t>(text, -1));
    if (found == by_text.end() || found->first != text) {
      extra.emplace_back(text, entry.token.id);
    } else if (found->second != entry.token.id) {
      return absl::InvalidArgumentError(absl::StrCat("added token ", Printable(text), " has id ",
                                                     entry.token.id, " but the model's vocabulary ",
                                                     "gives it ", found->second));
    }
  }
  tokens.insert(tokens.end(), extra.begin(), extra.end());
  Ids ids;
  ids.texts.resize(tokens.size());
  ids.kinds.resize(tokens.size(), TokenKind::kNormal);
  std::vector<bool> taken(tokens.size());
  for (auto& [text, id] : tokens) {
    if (id >= static_cast<int64_t>(tokens.size())) {
      return absl::InvalidArgumentError(absl::StrCat("token ", Printable(text), " has id ", id,
                                                     " but there are only ", tokens.size(),
                                                     " tokens: ids must be 0..n-1 without holes"));
    }
    if (taken[id]) {
      return absl::InvalidArgumentError(
          absl::StrCat("id ", id, " belongs to two tokens: ", Printable(ids.texts[id]), " and ",
                       Printable(text)));
    }
    taken[id] = true;
    ids.texts[id] = std::move(text);
  }
  for (const AddedEntry& entry : added) {
    ids.kinds[entry.token.id] = entry.token.special ? TokenKind::kSpecial : TokenKind::kAdded;
  }
  return ids;
}

absl::StatusOr<std::optional<int32_t>> UnknownToken(const Json& model,
                                                    const Vocabulary& vocabulary) {
  ASSIGN_OR_RETURN(const std::string text, OptionalString(model, "unk_token", ""));
  if (text.empty()) return std::nullopt;
  const std::optional<int32_t> id = vocabulary.Find(text);
  if (!id.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.unk_token is not in the vocabulary: ", Printable(text)));
  }
  return id;
}

absl::StatusOr<std::vector<std::pair<std::string, std::string>>> ParseMerges(const Json& model) {
  ASSIGN_OR_RETURN(const Json* list, RequireArray(model, "merges", "model"));
  std::vector<std::pair<std::string, std::string>> merges;
  merges.reserve(list->size());
  for (const Json& merge : *list) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
      continue;
    }
    const std::string text = merge.is_string() ? merge.get<std::string>() : "";
    const size_t blank = text.find(' ');
    if (blank == std::string::npos || text.find(' ', blank + 1) != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat("model.merges[", merges.size(), "] must be two tokens: ", Shown(merge)));
    }
    merges.emplace_back(text.substr(0, blank), text.substr(blank + 1));
  }
  return merges;
}

absl::StatusOr<std::unique_ptr<TokenModel>> BpeFromJson(const Json& model,
                                                        const Vocabulary& vocabulary) {
  const Json& dropout = Field(model, "dropout");
  if (!dropout.is_null() && dropout != 0.0) {
    return absl::UnimplementedError(absl::StrCat("BPE dropout is not supported: ", Shown(dropout)));
  }
  BpeOptions options;
  ASSIGN_OR_RETURN(options.merges, ParseMerges(model));
  ASSIGN_OR_RETURN(options.unknown_id, UnknownToken(model, vocabulary));
  ASSIGN_OR_RETURN(options.fuse_unknown, OptionalBool(model, "fuse_unk", false));
  ASSIGN_OR_RETURN(options.byte_fallback, OptionalBool(model, "byte_fallback", false));
  ASSIGN_OR_RETURN(options.ignore_merges, OptionalBool(model, "ignore_merges", false));
  ASSIGN_OR_RETURN(options.continuing_subword_prefix,
                   OptionalString(model, "continuing_subword_prefix", ""));
  ASSIGN_OR_RETURN(options.end_of_word_suffix, OptionalString(model, "end_of_word_suffix", ""));
  return MakeBpeModel(&vocabulary, options);
}

absl::StatusOr<std::unique_ptr<TokenModel>> UnigramFromJson(const Json& model,
                                                            const Vocabulary& vocabulary) {
  UnigramOptions options;
  for (const Json& entry : Field(model, "vocab")) options.scores.push_back(entry[1].get<double>());
  options.usable.assign(options.scores.size(), true);
  const Json& unknown = Field(model, "unk_id");
  if (!unknown.is_null()) {
    ASSIGN_OR_RETURN(
        options.unknown_id,
        ToTokenId(unknown, static_cast<int64_t>(options.scores.size()), "model.unk_id"));
  }
  ASSIGN_OR_RETURN(options.byte_fallback, OptionalBool(model, "byte_fallback", false));
  return MakeUnigramModel(&vocabulary, std::move(options));
}

absl::StatusOr<std::unique_ptr<TokenModel>> WordPieceFromJson(const Json& model,
                                                              const Vocabulary& vocabulary) {
  WordPieceOptions options;
  ASSIGN_OR_RETURN(const std::optional<int32_t> unknown, UnknownToken(model, vocabulary));
  if (!unknown.has_value()) return absl::InvalidArgumentError("WordPiece needs model.unk_token");
  options.unknown_id = *unknown;
  ASSIGN_OR_RETURN(options.continuing_subword_prefix,
                   OptionalString(model, "continuing_subword_prefix", "##"));
  ASSIGN_OR_RETURN(const std::optional<int64_t> longest,
                   OptionalInt(model, "max_input_chars_per_word"));
  if (longest.value_or(1) < 1) {
    return absl::InvalidArgumentError(
        absl::StrCat("model.max_input_chars_per_word must be positive: ", *longest));
  }
  if (longest.has_value()) options.max_characters_per_word = static_cast<size_t>(*longest);
  return MakeWordPieceModel(&vocabulary, options);
}

// "sep": ["[SEP]", 102]
absl::StatusOr<int32_t> PairId(const Json& json, std::string_view name,
                               const Vocabulary& vocabulary) {
  const Json& pair = Field(json, name);
  const Json& id = pair.is_array() && pair.size() == 2 ? pair[1] : pair;
  return ToTokenId(id, vocabulary.size(), absl::StrCat("post_processor.", std::string(name)));
}

absl::Status AddTemplate(const Json& json, TokenizerParts* parts) {
  ASSIGN_OR_RETURN(const Json* pieces, RequireArray(json, "single", "TemplateProcessing"));
  bool behind = false;
  for (const Json& piece : *pieces) {
    if (!Field(piece, "Sequence").is_null()) {
      behind = true;
      continue;
    }
    ASSIGN_OR_RETURN(const std::string name, RequireString(Field(piece, "SpecialToken"), "id",
                                                           "TemplateProcessing.SpecialToken"));
    const Json& special = Field(Field(json, "special_tokens"), name);
    ASSIGN_OR_RETURN(const Json* ids, RequireArray(special, "ids", "TemplateProcessing"));
    for (const Json& id : *ids) {
      ASSIGN_OR_RETURN(const int32_t value, ToTokenId(id, parts->vocabulary->size(),
                                                      "TemplateProcessing.special_tokens"));
      (behind ? parts->after : parts->before).push_back(value);
    }
  }
  return absl::OkStatus();
}

absl::Status AddPostProcessor(const Json& json, TokenizerParts* parts) {
  ASSIGN_OR_RETURN(const std::string type, RequireString(json, "type", "post_processor"));
  if (type == "ByteLevel") return absl::OkStatus();  // only moves offsets, which nobody asks for
  if (type == "TemplateProcessing") return AddTemplate(json, parts);
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    ASSIGN_OR_RETURN(const int32_t first, PairId(json, "cls", *parts->vocabulary));
    ASSIGN_OR_RETURN(const int32_t last, PairId(json, "sep", *parts->vocabulary));
    parts->before.push_back(first);
    parts->after.push_back(last);
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrCat("post_processor ", Printable(type), " is not supported"));
}

// tokenizer_config.json writes a token as a text or as an object with its "content".
std::string ConfigToken(const Json& config, std::string_view name) {
  const Json& value = Field(config, name);
  const Json& text = value.is_object() ? Field(value, "content") : value;
  return text.is_string() ? text.get<std::string>() : "";
}

// A text, or a list of {"name", "template"}.
std::string ConfigTemplate(const Json& config) {
  const Json& value = Field(config, "chat_template");
  if (value.is_string()) return value.get<std::string>();
  if (!value.is_array()) return "";
  for (const Json& entry : value) {
    const Json& name = Field(entry, "name");
    const Json& text = Field(entry, "template");
    if (name == "default" && text.is_string()) return text.get<std::string>();
  }
  return "";
}

absl::Status AddAddedTokens(std::vector<AddedEntry> entries, TokenizerParts* parts) {
  std::vector<AddedToken> raw, normalized;
  for (AddedEntry& entry : entries) {
    if (!entry.normalized) {
      raw.push_back(std::move(entry.token));
      continue;
    }
    RETURN_IF_ERROR(parts->normalizer.Run(&entry.token.content));
    normalized.push_back(std::move(entry.token));
  }
  parts->added = AddedTokens(std::move(raw));
  parts->normalized_added = AddedTokens(std::move(normalized));
  return absl::OkStatus();
}

// Files older than the field say it by what they contain.
absl::StatusOr<std::string> ModelType(const Json& model) {
  ASSIGN_OR_RETURN(const std::string type, OptionalString(model, "type", ""));
  if (!type.empty()) return type;
  if (!Field(model, "merges").is_null()) return "BPE";
  return Field(model, "vocab").is_array() ? "Unigram" : "WordPiece";
}

}  // namespace

absl::StatusOr<TokenizerParts> PartsFromHuggingFace(const Json& tokenizer, const Json& config) {
  ASSIGN_OR_RETURN(const Json* model, RequireObject(tokenizer, "model", "tokenizer"));
  ASSIGN_OR_RETURN(const std::string type, ModelType(*model));
  if (type != "BPE" && type != "Unigram" && type != "WordPiece") {
    return absl::UnimplementedError(
        absl::StrCat("tokenizer model ", Printable(type), " is not supported"));
  }
  ASSIGN_OR_RETURN(std::vector<AddedEntry> added, ParseAddedTokens(tokenizer));
  ASSIGN_OR_RETURN(auto tokens, ModelTokens(*model, type == "Unigram"));
  ASSIGN_OR_RETURN(Ids ids, CollectIds(std::move(tokens), added));
  ASSIGN_OR_RETURN(Vocabulary vocabulary,
                   Vocabulary::Create(std::move(ids.texts), std::move(ids.kinds)));
  TokenizerParts parts;
  parts.vocabulary = std::make_unique<const Vocabulary>(std::move(vocabulary));
  if (type == "BPE") {
    ASSIGN_OR_RETURN(parts.model, BpeFromJson(*model, *parts.vocabulary));
  } else if (type == "Unigram") {
    ASSIGN_OR_RETURN(parts.model, UnigramFromJson(*model, *parts.vocabulary));
  } else {
    ASSIGN_OR_RETURN(parts.model, WordPieceFromJson(*model, *parts.vocabulary));
  }
  ASSIGN_OR_RETURN(parts.normalizer, Normalizer::FromJson(Field(tokenizer, "normalizer")));
  ASSIGN_OR_RETURN(parts.pre_tokenizer, PreTokenizer::FromJson(Field(tokenizer, "pre_tokenizer")));
  ASSIGN_OR_RETURN(parts.decoder, Decoder::FromJson(Field(tokenizer, "decoder")));
  ASSIGN_OR_RETURN(const auto processors,
                   Components(Field(tokenizer, "post_processor"), "processors", "post_processor"));
  for (const Json* part : processors) RETURN_IF_ERROR(AddPostProcessor(*part, &parts));
  RETURN_IF_ERROR(AddAddedTokens(std::move(added), &parts));
  const std::string eos = ConfigToken(config, "eos_token");
  parts.end_tokens = FindEndTokens(*parts.vocabulary, parts.vocabulary->Find(eos));
  parts.chat_template =
      ChatTemplate(ConfigTemplate(config), {.bos = ConfigToken(config, "bos_token"), .eos = eos});
  return parts;
}

}  // namespace assay
