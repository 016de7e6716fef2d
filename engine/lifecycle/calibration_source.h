// What a user names as calibration data, as documents of token ids. Pure: bytes come in as a value.
//
// Kinds, found from the name's extension and from the content:
//   npy        ".npy" or NumPy's magic: int32 or int64 ids, shape [n, t]: n documents
//   token ids  ".jsonl", ".ndjson", ".json", or a first line that is a JSON array or object; its
//              first line is an array of ids or has the key "input_ids"
//   jsonl      likewise, other objects: {"text": "..."} or {"messages": [{"role": "user",
//              "content": "..."}, ...]}; messages go through the model's chat template
//   text       everything else: UTF-8, cut into articles or pieces (encoders: sentences)
// In JSONL every line that is not blank is one document.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "engine/lifecycle/token_documents.h"
#include "engine/model/model.h"

namespace assay {

enum class CalibrationKind { kText, kJsonl, kTokenIds, kNpy, kRandom };
std::string_view Name(CalibrationKind kind);  // as in reports: "text", "jsonl", "token ids", ...

struct SourceDocument {
  TokenDocument ids;
  bool chat = false;  // came from messages
};
struct CalibrationSource {
  CalibrationKind kind = CalibrationKind::kText;
  std::vector<SourceDocument> documents;
};

CalibrationKind FindCalibrationKind(std::string_view bytes, std::string_view origin);

// Tokenizes all of it. `origin` is the file's name; `tokenizer` may be null: then only ids can be
// read; `pieces` > 0: see SplitArticles. InvalidArgument begins with origin and line, and shows the
// value: not UTF-8, not JSON, a key or type that is not one of the above, a role that is not
// system, user or assistant, an id outside the vocabulary (row and column for .npy), a line over
// 4 MiB, a source over 64 MiB. FailedPrecondition: text without a tokenizer, messages without a
// chat template.
absl::StatusOr<CalibrationSource> ReadCalibrationSource(std::string_view bytes,
                                                        const std::string& origin,
                                                        const Tokenizer* tokenizer,
                                                        const ModelSpec& spec, int pieces);

}  // namespace assay
