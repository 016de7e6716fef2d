#include "engine/lifecycle/evaluation.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "engine/lifecycle/evaluation_text.h"

namespace assay {
namespace {

constexpr size_t kMinDocumentTokens = 8;
constexpr size_t kMinSentenceBytes = 24;

// " = Title = ", as WikiText marks the beginning of an article.
bool IsTitle(std::string_view line) {
  return line.size() > 6 && line.substr(0, 3) == " = " && line[3] != '=' &&
         line.substr(line.size() - 3) == " = " && line[line.size() - 4] != '=';
}

std::vector<std::string_view> Lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size() - 1);
    lines.push_back(text.substr(0, end + 1));
    text.remove_prefix(end + 1);
  }
  return lines;
}

std::string_view WithoutNewline(std::string_view line) {
  while (!line.empty() && (line.back() == '\n' || line.back() == '\r')) line.remove_suffix(1);
  return line;
}

// Articles of a text; a text without titles is cut into `pieces` of about equal size at line ends.
std::vector<std::string_view> Articles(std::string_view text, int pieces) {
  std::vector<std::string_view> articles;
  size_t begin = 0, at = 0;
  int titles = 0;
  const auto cut = [&](size_t end) {
    if (end > begin) articles.push_back(text.substr(begin, end - begin));
    begin = end;
  };
  const std::vector<std::string_view> lines = Lines(text);
  for (const std::string_view line : lines) titles += IsTitle(WithoutNewline(line)) ? 1 : 0;
  const size_t share = text.size() / static_cast<size_t>(pieces) + 1;
  for (const std::string_view line : lines) {
    if (titles > 1 ? IsTitle(WithoutNewline(line)) : at - begin >= share) cut(at);
    at += line.size();
  }
  cut(text.size());
  return articles;
}

// Sentences of a text in its order: up to " . " or the end of the line; headings left out.
std::vector<std::string> Sentences(std::string_view text) {
  std::vector<std::string> sentences;
  for (std::string_view line : Lines(text)) {
    line = WithoutNewline(line);
    if (line.size() < 3 || line.substr(0, 2) == " =") continue;
    while (!line.empty()) {
      size_t end = std::min(line.find(" . "), line.find(". "));
      end = end == std::string_view::npos ? line.size() : line.find(' ', end + 1);
      if (end == std::string_view::npos) end = line.size();
      if (end >= kMinSentenceBytes) sentences.emplace_back(line.substr(0, end));
      line.remove_prefix(end);
    }
  }
  return sentences;
}

// About `wanted` of the items, spread evenly over all of them.
template <typename T>
std::vector<T> Spread(std::vector<T> items, int wanted) {
  const auto count = static_cast<size_t>(wanted);
  if (items.size() <= count) return items;
  std::vector<T> chosen;
  for (size_t i = 0; i < count; ++i) {
    chosen.push_back(std::move(items[i * items.size() / count]));
  }
  return chosen;
}

absl::StatusOr<std::vector<std::vector<int32_t>>> TokenizeWindows(std::string_view text,
                                                                  const Tokenizer& tokenizer,
                                                                  int documents, size_t window) {
  // First windows of every article, then second ones, until there are enough.
  std::vector<std::vector<int32_t>> articles;
  for (const std::string_view article : Articles(text, documents)) {
    ASSIGN_OR_RETURN(articles.emplace_back(), tokenizer.Encode(article, true, false));
  }
  std::vector<std::vector<int32_t>> windows;
  for (size_t round = 0; windows.size() < static_cast<size_t>(documents); ++round) {
    const size_t before = windows.size();
    for (const std::vector<int32_t>& ids : Spread(articles, documents)) {
      const size_t begin = round * window;
      if (ids.size() < begin + kMinDocumentTokens) continue;
      const size_t end = std::min(begin + window, ids.size());
      if (windows.size() < static_cast<size_t>(documents)) {
        windows.emplace_back(ids.begin() + static_cast<ptrdiff_t>(begin),
                             ids.begin() + static_cast<ptrdiff_t>(end));
      }
    }
    if (windows.size() == before) break;
  }
  return windows;
}

absl::StatusOr<std::vector<std::vector<int32_t>>> TokenizeSentences(std::string_view text,
                                                                    const Tokenizer& tokenizer,
                                                                    int sentences, size_t limit) {
  std::vector<std::vector<int32_t>> documents;
  for (const std::string& sentence : Spread(Sentences(text), sentences)) {
    ASSIGN_OR_RETURN(std::vector<int32_t> ids, tokenizer.Encode(sentence, true, false));
    if (ids.size() > limit) {  // keep the closing special token
      ids[limit - 1] = ids.back();
      ids.resize(limit);
    }
    if (!ids.empty()) documents.push_back(std::move(ids));
  }
  return documents;
}

// splitmix64 (Steele, Lea, Flood 2014).
std::vector<std::vector<int32_t>> RandomDocuments(int count, size_t length, int vocab) {
  uint64_t state = 20261122;
  std::vector<std::vector<int32_t>> documents(static_cast<size_t>(count));
  for (std::vector<int32_t>& document : documents) {
    for (size_t i = 0; i < length; ++i) {
      uint64_t z = (state += 0x9e3779b97f4a7c15u);
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      document.push_back(static_cast<int32_t>((z ^ (z >> 31)) % static_cast<uint64_t>(vocab)));
    }
  }
  return documents;
}

std::string HashOf(const std::vector<std::vector<int32_t>>& documents) {
  Sha256 hash;
  for (const std::vector<int32_t>& document : documents) {
    const uint64_t size = document.size();
    hash.Update(std::as_bytes(std::span(&size, 1)));
    hash.Update(std::as_bytes(std::span(document)));
  }
  return hash.HexDigest();
}

}  // namespace

int EvaluationSet::num_tokens() const {
  size_t total = 0;
  for (const std::vector<int32_t>& document : documents) total += document.size();
  return static_cast<int>(total);
}

std::string_view BundledEvaluationText() { return kBundledEvaluationText; }

absl::StatusOr<EvaluationSet> MakeEvaluationSet(std::string_view text, const std::string& origin,
                                                const Tokenizer* tokenizer, const ModelSpec& spec,
                                                const EvaluationSize& size) {
  const bool decoder = spec.task == ModelTask::kGenerate;
  const auto context = static_cast<size_t>(std::max(spec.max_context, 1));
  const size_t window =
      std::min(context, static_cast<size_t>(decoder ? size.window : size.sentence_tokens));
  EvaluationSet set;
  if (tokenizer == nullptr) {
    constexpr size_t kRandomTokens = 64;
    set.documents = RandomDocuments(decoder ? size.documents : size.sentences,
                                    std::min(window, kRandomTokens), spec.vocab);
    set.name = "random token ids: the checkpoint has no tokenizer";
  } else if (decoder) {
    ASSIGN_OR_RETURN(set.documents, TokenizeWindows(text, *tokenizer, size.documents, window));
    set.name = absl::StrCat(origin, ", windows of up to ", window, " tokens");
  } else {
    ASSIGN_OR_RETURN(set.documents, TokenizeSentences(text, *tokenizer, size.sentences, window));
    set.name = absl::StrCat(origin, ", sentences");
  }
  if (set.documents.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the evaluation text is too short: text=", origin, " bytes=", text.size()));
  }
  set.hash = HashOf(set.documents);
  return set;
}

}  // namespace assay
