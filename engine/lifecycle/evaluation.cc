#include "engine/lifecycle/evaluation.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/lifecycle/bundled_text.h"
#include "engine/lifecycle/token_documents.h"

namespace assay {
namespace {

absl::StatusOr<std::vector<TokenDocument>> TokenizeWindows(std::string_view text,
                                                           const Tokenizer& tokenizer,
                                                           int documents, size_t window) {
  // First windows of every article, then second ones, until there are enough.
  std::vector<TokenDocument> articles;
  for (const std::string_view article : SplitArticles(text, documents)) {
    ASSIGN_OR_RETURN(articles.emplace_back(), tokenizer.Encode(article, true, false));
  }
  std::vector<TokenDocument> windows;
  for (size_t round = 0; windows.size() < static_cast<size_t>(documents); ++round) {
    const size_t before = windows.size();
    for (const size_t article : SpreadIndices(articles.size(), static_cast<size_t>(documents))) {
      const TokenDocument& ids = articles[article];
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

absl::StatusOr<std::vector<TokenDocument>> TokenizeSentences(std::string_view text,
                                                             const Tokenizer& tokenizer,
                                                             int sentences, size_t limit) {
  std::vector<TokenDocument> documents;
  const std::vector<std::string_view> all = SplitSentences(text);
  for (const size_t sentence : SpreadIndices(all.size(), static_cast<size_t>(sentences))) {
    ASSIGN_OR_RETURN(TokenDocument ids, tokenizer.Encode(all[sentence], true, false));
    TruncateEncoded(limit, &ids);
    if (!ids.empty()) documents.push_back(std::move(ids));
  }
  return documents;
}

}  // namespace

int EvaluationSet::num_tokens() const {
  size_t total = 0;
  for (const TokenDocument& document : documents) total += document.size();
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
    set.documents = RandomDocuments(
        {.documents = static_cast<size_t>(decoder ? size.documents : size.sentences),
         .tokens = std::min(window, kRandomTokens)},
        spec.vocab, /*seed=*/20261122);
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
  set.hash = HashDocuments(set.documents);
  return set;
}

absl::StatusOr<EvaluationSet> MakeLongContextSet(std::string_view text, const std::string& origin,
                                                 const Tokenizer* tokenizer, const ModelSpec& spec,
                                                 const EvaluationSize& size) {
  EvaluationSet set;
  const int most = std::min(spec.max_context, size.long_window);
  if (tokenizer == nullptr || most <= size.window) return set;
  ASSIGN_OR_RETURN(const TokenDocument ids, tokenizer->Encode(text, true, false));
  const size_t length =
      std::min(static_cast<size_t>(most), ids.size() / static_cast<size_t>(size.long_documents));
  const auto window = static_cast<int>(length);
  if (window <= size.window) return set;
  const size_t windows = ids.size() / length;
  for (const size_t i : SpreadIndices(windows, static_cast<size_t>(size.long_documents))) {
    const auto begin = ids.begin() + static_cast<ptrdiff_t>(i * length);
    set.documents.emplace_back(begin, begin + window);
  }
  set.name = absl::StrCat(origin, ", long context: ", set.documents.size(), " windows of ", window,
                          " tokens");
  set.hash = HashDocuments(set.documents);
  return set;
}

}  // namespace assay
