#include "engine/lifecycle/calibration_source.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "engine/lifecycle/npy.h"
#include "engine/model/checkpoint_text.h"
#include "engine/model/tokenizer/unicode.h"

namespace assay {
namespace {

using nlohmann::json;

constexpr size_t kMaxBytes = size_t{64} << 20;
constexpr size_t kMaxLineBytes = size_t{4} << 20;

struct Reader {
  const std::string& origin;
  const Tokenizer* tokenizer;
  const ModelSpec& spec;
};

absl::Status Wrong(const std::string& where, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", what));
}

std::string_view FirstLine(std::string_view bytes) {
  const size_t begin = bytes.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  bytes.remove_prefix(begin);
  return bytes.substr(0, bytes.find('\n'));
}

bool HoldsIds(std::string_view line) {
  if (line.empty() || line.size() > kMaxLineBytes) return false;
  if (line.front() == '[') return true;
  const absl::StatusOr<json> value = ParseBoundedJson(line, "");
  return value.ok() && value->is_object() && value->contains("input_ids");
}

absl::Status CheckIds(const Reader& reader, const TokenDocument& ids, const std::string& where) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0 && ids[i] < reader.spec.vocab) continue;
    return Wrong(where, absl::StrCat("token id outside the vocabulary: column=", i, " id=", ids[i],
                                     " vocab=", reader.spec.vocab));
  }
  return absl::OkStatus();
}

absl::StatusOr<TokenDocument> ParseIds(const Reader& reader, const json& line,
                                       const std::string& where) {
  const json* ids = &line;
  if (line.is_object()) {
    const auto found = line.find("input_ids");
    if (found == line.end()) {
      return Wrong(where, absl::StrCat("expected an array of token ids or {\"input_ids\": [...]}: ",
                                       Quoted(line.dump())));
    }
    ids = &*found;
  }
  if (!ids->is_array()) {
    return Wrong(where, absl::StrCat("expected an array of token ids: ", Quoted(ids->dump())));
  }
  TokenDocument document;
  for (const json& id : *ids) {
    if (!id.is_number_integer() || id < 0 || id >= reader.spec.vocab) {
      return Wrong(where, absl::StrCat("expected token ids from 0 to ", reader.spec.vocab - 1,
                                       ": index=", document.size(), " value=", Quoted(id.dump())));
    }
    document.push_back(id.get<int32_t>());
  }
  return document;
}

absl::StatusOr<std::vector<ChatMessage>> ParseMessages(const json& list, const std::string& where) {
  std::vector<ChatMessage> messages;
  if (!list.is_array() || list.empty()) {
    return Wrong(where, absl::StrCat("\"messages\" must be a list of {\"role\", \"content\"}: ",
                                     Quoted(list.dump())));
  }
  for (const json& item : list) {
    const bool complete = item.is_object() && item.contains("role") && item["role"].is_string() &&
                          item.contains("content") && item["content"].is_string();
    if (!complete) {
      return Wrong(where, absl::StrCat("a message needs texts \"role\" and \"content\": message=",
                                       messages.size(), " value=", Quoted(item.dump())));
    }
    const auto role = item["role"].get<std::string>();
    if (role != "system" && role != "user" && role != "assistant") {
      return Wrong(where, absl::StrCat("expected role system, user or assistant: message=",
                                       messages.size(), " role=", Quoted(role)));
    }
    messages.push_back({role, item["content"].get<std::string>()});
  }
  return messages;
}

// As the server encodes a chat: one BOS, and no end of sequence that the template did not write.
absl::StatusOr<TokenDocument> EncodeChat(const Tokenizer& tokenizer, std::string_view text) {
  ASSIGN_OR_RETURN(TokenDocument ids, tokenizer.Encode(text, true, /*parse_special=*/true));
  ASSIGN_OR_RETURN(const TokenDocument plain, tokenizer.Encode(text, false, true));
  if (ids.size() >= 2 && ids[0] == ids[1] && tokenizer.is_special(ids[0])) ids.erase(ids.begin());
  const bool written = !plain.empty() && !ids.empty() && plain.back() == ids.back();
  const auto ends = tokenizer.end_tokens();
  if (!written && !ids.empty() && std::find(ends.begin(), ends.end(), ids.back()) != ends.end()) {
    ids.pop_back();
  }
  return ids;
}

absl::StatusOr<SourceDocument> ParseTextLine(const Reader& reader, const json& line,
                                             const std::string& where) {
  const bool text = line.is_object() && line.contains("text");
  const bool chat = line.is_object() && line.contains("messages");
  if (text == chat) {
    return Wrong(where, absl::StrCat("expected one of {\"text\": ...} and {\"messages\": [...]}: ",
                                     Quoted(line.dump())));
  }
  SourceDocument document{.chat = chat};
  if (text) {
    if (!line["text"].is_string()) {
      return Wrong(where, absl::StrCat("\"text\" must be a text: ", Quoted(line["text"].dump())));
    }
    const auto& content = line["text"].get_ref<const std::string&>();
    absl::StatusOr<TokenDocument> ids = reader.tokenizer->Encode(content, true, false);
    if (!ids.ok()) return Annotate(ids.status(), where);
    document.ids = *std::move(ids);
    return document;
  }
  ASSIGN_OR_RETURN(const std::vector<ChatMessage> messages, ParseMessages(line["messages"], where));
  const absl::StatusOr<std::string> prompt = reader.tokenizer->ApplyChatTemplate(messages);
  if (!prompt.ok()) return Annotate(prompt.status(), where);
  ASSIGN_OR_RETURN(document.ids, EncodeChat(*reader.tokenizer, *prompt));
  return document;
}

absl::StatusOr<std::vector<SourceDocument>> ReadLines(const Reader& reader, std::string_view bytes,
                                                      bool ids) {
  std::vector<SourceDocument> documents;
  for (int number = 1; !bytes.empty(); ++number) {
    const size_t end = bytes.find('\n');
    const std::string_view line = TrimWhitespace(bytes.substr(0, end), true, true);
    bytes.remove_prefix(end == std::string_view::npos ? bytes.size() : end + 1);
    if (line.empty()) continue;
    const std::string where = absl::StrCat(reader.origin, ":", number);
    if (line.size() > kMaxLineBytes) {
      return Wrong(where, absl::StrCat("the line is too long: bytes=", line.size(),
                                       " limit=", kMaxLineBytes));
    }
    const absl::StatusOr<json> value = ParseBoundedJson(line, where);
    if (absl::IsDataLoss(value.status())) {
      return Wrong(where, absl::StrCat("not a JSON value: ", Quoted(line)));
    }
    RETURN_IF_ERROR(value.status());
    if (ids) {
      ASSIGN_OR_RETURN(TokenDocument document, ParseIds(reader, *value, where));
      documents.push_back({.ids = std::move(document)});
    } else {
      ASSIGN_OR_RETURN(SourceDocument document, ParseTextLine(reader, *value, where));
      documents.push_back(std::move(document));
    }
  }
  return documents;
}

absl::StatusOr<std::vector<SourceDocument>> ReadText(const Reader& reader, std::string_view text,
                                                     int pieces) {
  if (const size_t bad = FindInvalidUtf8(text); bad != std::string_view::npos) {
    const auto line =
        1 + std::count(text.begin(), text.begin() + static_cast<ptrdiff_t>(bad), '\n');
    return Wrong(absl::StrCat(reader.origin, ":", line),
                 absl::StrCat("not UTF-8: offset=", bad, " bytes=", Quoted(text.substr(bad, 8))));
  }
  const bool decoder = reader.spec.task == ModelTask::kGenerate;
  std::vector<SourceDocument> documents;
  for (const std::string_view part : decoder ? SplitArticles(text, pieces) : SplitSentences(text)) {
    absl::StatusOr<TokenDocument> ids = reader.tokenizer->Encode(part, true, false);
    if (!ids.ok()) return Annotate(ids.status(), reader.origin);
    documents.push_back({.ids = *std::move(ids)});
  }
  return documents;
}

absl::StatusOr<std::vector<SourceDocument>> ReadNpy(const Reader& reader, std::string_view bytes) {
  ASSIGN_OR_RETURN(std::vector<TokenDocument> rows, ReadNpyRows(bytes, reader.origin));
  std::vector<SourceDocument> documents;
  for (TokenDocument& row : rows) {
    RETURN_IF_ERROR(CheckIds(reader, row, absl::StrCat(reader.origin, ": row=", documents.size())));
    documents.push_back({.ids = std::move(row)});
  }
  return documents;
}

}  // namespace

std::string_view Name(CalibrationKind kind) {
  switch (kind) {
    case CalibrationKind::kText:
      return "text";
    case CalibrationKind::kJsonl:
      return "jsonl";
    case CalibrationKind::kTokenIds:
      return "token ids";
    case CalibrationKind::kNpy:
      return "npy";
    case CalibrationKind::kRandom:
      return "random";
  }
  return "";
}

CalibrationKind FindCalibrationKind(std::string_view bytes, std::string_view origin) {
  if (origin.ends_with(".npy") || bytes.starts_with(kNpyMagic)) return CalibrationKind::kNpy;
  const std::string_view first = FirstLine(bytes);
  const bool named =
      origin.ends_with(".jsonl") || origin.ends_with(".ndjson") || origin.ends_with(".json");
  const bool looks = !first.empty() && first.size() <= kMaxLineBytes &&
                     (first.front() == '{' || first.front() == '[') &&
                     ParseBoundedJson(first, "").ok();
  if (!named && !looks) return CalibrationKind::kText;
  return HoldsIds(first) ? CalibrationKind::kTokenIds : CalibrationKind::kJsonl;
}

absl::StatusOr<CalibrationSource> ReadCalibrationSource(std::string_view bytes,
                                                        const std::string& origin,
                                                        const Tokenizer* tokenizer,
                                                        const ModelSpec& spec, int pieces) {
  if (bytes.size() > kMaxBytes) {
    return Wrong(origin, absl::StrCat("too large for calibration: bytes=", bytes.size(),
                                      " limit=", kMaxBytes));
  }
  const Reader reader{origin, tokenizer, spec};
  CalibrationSource source{.kind = FindCalibrationKind(bytes, origin)};
  const bool text = source.kind == CalibrationKind::kText || source.kind == CalibrationKind::kJsonl;
  if (text && tokenizer == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat(origin,
                     ": the checkpoint has no tokenizer, so calibration data must be token "
                     "ids (JSONL arrays or .npy)"));
  }
  if (source.kind == CalibrationKind::kText) {
    ASSIGN_OR_RETURN(source.documents, ReadText(reader, bytes, pieces));
  } else if (source.kind == CalibrationKind::kNpy) {
    ASSIGN_OR_RETURN(source.documents, ReadNpy(reader, bytes));
  } else {
    ASSIGN_OR_RETURN(source.documents,
                     ReadLines(reader, bytes, source.kind == CalibrationKind::kTokenIds));
  }
  return source;
}

}  // namespace assay
