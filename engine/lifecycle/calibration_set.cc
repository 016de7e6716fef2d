#include "engine/lifecycle/calibration_set.h"

#include <algorithm>
#include <bit>
#include <set>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/mapped_file.h"
#include "engine/lifecycle/bundled_text.h"
#include "engine/model/tokenizer/unicode.h"
#include "quant/estimate.h"

namespace assay {
namespace {

constexpr size_t kMinIds = 2;  // of a document that is given as ids: the user's own cut
constexpr size_t kSharedTokens = 32;

struct Window {
  size_t document = 0, begin = 0, end = 0;
};

// What the tokenizer puts before any text. Encoders also have something behind it, and no windows
// from the middle.
absl::StatusOr<TokenDocument> LeadingTokens(const Tokenizer* tokenizer, const ModelSpec& spec) {
  TokenDocument leading;
  if (tokenizer == nullptr || spec.task != ModelTask::kGenerate) return leading;
  ASSIGN_OR_RETURN(const TokenDocument with, tokenizer->Encode("a", true, false));
  ASSIGN_OR_RETURN(const TokenDocument without, tokenizer->Encode("a", false, false));
  const auto text = std::search(with.begin(), with.end(), without.begin(), without.end());
  leading.assign(with.begin(), text == with.end() ? with.begin() : text);
  return leading;
}

// A document with fewer is left out.
size_t LeastTokens(CalibrationKind kind, bool decoder) {
  const bool text = kind == CalibrationKind::kText || kind == CalibrationKind::kJsonl;
  return !decoder ? 1 : text ? kMinDocumentTokens : kMinIds;
}

std::vector<Window> CutWindows(const CalibrationSource& source, bool decoder, size_t window,
                               size_t leading) {
  const size_t least = LeastTokens(source.kind, decoder);
  std::vector<Window> windows;
  for (size_t d = 0; d < source.documents.size(); ++d) {
    const size_t size = source.documents[d].ids.size();
    size_t begin = 0;
    while (size >= begin + least) {
      // Behind the first, each gives room for the leading tokens.
      const size_t room = begin == 0 ? window : window - std::min(leading, window - 1);
      windows.push_back({d, begin, std::min(begin + room, size)});
      begin += room;
      if (!decoder || begin >= size) break;
    }
  }
  return windows;
}

// Encoders see sentences, a fraction of a window each: as many more of them as make up half of the
// tokens that so many windows would have (a Hessian of k channels wants 4 k rows).
size_t Wanted(const std::vector<Window>& windows, bool decoder, const CalibrationSize& size) {
  const auto samples = static_cast<size_t>(size.samples);
  if (decoder || windows.empty()) return samples;
  size_t tokens = 0;
  for (const Window& window : windows) tokens += window.end - window.begin;
  const size_t budget = samples * static_cast<size_t>(size.window) / 2;
  return std::max(samples, budget * windows.size() / std::max<size_t>(tokens, 1));
}

TokenDocument SampleOf(const SourceDocument& document, const Window& window,
                       const TokenDocument& leading, size_t limit) {
  TokenDocument sample;
  if (window.begin > 0 && leading.size() < limit) sample = leading;
  const auto first = document.ids.begin();
  sample.insert(sample.end(), first + static_cast<ptrdiff_t>(window.begin),
                first + static_cast<ptrdiff_t>(window.end));
  return sample;
}

void DescribeSource(const CalibrationSource& source, size_t least, CalibrationCoverage* coverage) {
  std::map<int64_t, int> bins;
  std::vector<double> lengths;
  for (const SourceDocument& document : source.documents) {
    const size_t size = document.ids.size();
    coverage->tokens += static_cast<int64_t>(size);
    coverage->chat_documents += document.chat ? 1 : 0;
    coverage->too_short += size < least ? 1 : 0;
    lengths.push_back(static_cast<double>(size));
    ++bins[static_cast<int64_t>(std::bit_ceil(std::max<size_t>(size, 1)))];
  }
  coverage->documents = static_cast<int>(source.documents.size());
  for (const auto& [up_to, documents] : bins) coverage->lengths.push_back({up_to, documents});
  coverage->p10_tokens = Quantile(lengths, 0.1);
  coverage->median_tokens = Quantile(lengths, 0.5);
  coverage->p90_tokens = Quantile(lengths, 0.9);
  coverage->longest_tokens = Quantile(lengths, 1);
}

absl::Status DescribeScripts(const std::vector<TokenDocument>& samples, const Tokenizer& tokenizer,
                             CalibrationCoverage* coverage) {
  std::map<std::string, int64_t> letters;
  int64_t total = 0;
  for (const TokenDocument& sample : samples) {
    ASSIGN_OR_RETURN(const std::string text, tokenizer.Decode(sample, /*skip_special=*/true));
    for (const auto& [script, count] : CountScripts(text)) {
      letters[script] += count;
      total += count;
    }
  }
  for (const auto& [script, count] : letters) {
    coverage->scripts[script] = static_cast<double>(count) / static_cast<double>(total);
  }
  return absl::OkStatus();
}

absl::Status TooShort(const std::string& origin, const CalibrationCoverage& coverage) {
  return absl::InvalidArgumentError(absl::StrCat(
      origin, ": no document is long enough to calibrate on: documents=", coverage.documents,
      " tokens=", coverage.tokens));
}

absl::StatusOr<CalibrationSet> FromSource(const CalibrationSource& source,
                                          const std::string& origin, const Tokenizer* tokenizer,
                                          const ModelSpec& spec, const CalibrationSize& size) {
  const bool decoder = spec.task == ModelTask::kGenerate;
  const auto window =
      static_cast<size_t>(std::clamp(size.window, 2, std::max(spec.max_context, 2)));
  ASSIGN_OR_RETURN(const TokenDocument leading, LeadingTokens(tokenizer, spec));
  CalibrationSet set{.kind = source.kind};
  DescribeSource(source, LeastTokens(source.kind, decoder), &set.coverage);
  const std::vector<Window> windows = CutWindows(source, decoder, window, leading.size());
  for (const size_t i : SpreadIndices(windows.size(), Wanted(windows, decoder, size))) {
    const SourceDocument& document = source.documents[windows[i].document];
    set.samples.push_back(SampleOf(document, windows[i], leading, window));
    if (!decoder) {  // the closing special token stays
      set.samples.back() = document.ids;
      TruncateEncoded(window, &set.samples.back());
    }
    set.coverage.chat_samples += document.chat ? 1 : 0;
    set.coverage.sample_tokens += static_cast<int64_t>(set.samples.back().size());
  }
  if (set.samples.empty()) return TooShort(origin, set.coverage);
  set.coverage.samples = static_cast<int>(set.samples.size());
  if (tokenizer != nullptr) {
    RETURN_IF_ERROR(DescribeScripts(set.samples, *tokenizer, &set.coverage));
  }
  set.name = absl::StrCat(origin, " (", std::string(Name(source.kind)), "), ", set.samples.size(),
                          " of ", windows.size(), " windows of up to ", window, " tokens");
  set.hash = HashDocuments(set.samples);
  return set;
}

absl::StatusOr<CalibrationSet> RandomCalibrationSet(const ModelSpec& spec,
                                                    const CalibrationSize& size) {
  constexpr int kRandomTokens = 64;
  CalibrationSource source{.kind = CalibrationKind::kRandom};
  // Another seed than the evaluation set's.
  for (TokenDocument& ids :
       RandomDocuments({.documents = static_cast<size_t>(size.samples),
       .tokens = static_cast<size_t>(std::min({size.window, spec.max_context, kRandomTokens}))},
                       spec.vocab, /*seed=*/20261123)) {
    source.documents.push_back({.ids = std::move(ids)});
  }
  ASSIGN_OR_RETURN(CalibrationSet set, FromSource(source, "random", nullptr, spec, size));
  set.name = "random token ids: the checkpoint has no tokenizer";
  return set;
}

// Polynomial hash of n tokens, modulo 2^64; equality is checked before it is believed.
class RollingHash {
 public:
  explicit RollingHash(size_t n) {
    for (size_t i = 1; i < n; ++i) top_ *= kBase;
  }
  uint64_t First(std::span<const int32_t> ids) {
    hash_ = 0;
    for (const int32_t id : ids) hash_ = hash_ * kBase + static_cast<uint32_t>(id) + 1;
    return hash_;
  }
  uint64_t Next(int32_t out, int32_t in) {
    hash_ -= top_ * (static_cast<uint32_t>(out) + uint64_t{1});
    return hash_ = hash_ * kBase + static_cast<uint32_t>(in) + 1;
  }

 private:
  static constexpr uint64_t kBase = 0x9e3779b97f4a7c15u;
  uint64_t hash_ = 0, top_ = 1;
};

// Calls visit(hash, begin) for every run of n tokens.
template <typename Visit>
void ForEachRun(std::span<const int32_t> ids, size_t n, Visit visit) {
  if (ids.size() < n) return;
  RollingHash hash(n);
  visit(hash.First(ids.first(n)), size_t{0});
  for (size_t i = n; i < ids.size(); ++i) visit(hash.Next(ids[i - n], ids[i]), i - n + 1);
}

// ": \"the text ...\"", or nothing.
std::string Quoted(const Tokenizer* tokenizer, std::span<const int32_t> ids) {
  if (tokenizer == nullptr) return "";
  const absl::StatusOr<std::string> text = tokenizer->Decode(ids, /*skip_special=*/true);
  return text.ok() ? absl::StrCat(": \"", *text, "\"") : "";
}

// Runs of `n` tokens: of every evaluation document that is longer than that, or exactly n tokens
// long.
absl::Status CheckRuns(const CalibrationSet& calibration, const EvaluationSet& evaluation,
                       const Tokenizer* tokenizer, size_t n) {
  struct Place {
    size_t document, begin;
  };
  std::unordered_multimap<uint64_t, Place> runs;
  for (size_t d = 0; d < evaluation.documents.size(); ++d) {
    const TokenDocument& document = evaluation.documents[d];
    if (n < kSharedTokens && document.size() != n) continue;
    ForEachRun(document, n, [&](uint64_t hash, size_t begin) { runs.insert({hash, {d, begin}}); });
  }
  for (size_t s = 0; s < calibration.samples.size(); ++s) {
    const TokenDocument& sample = calibration.samples[s];
    absl::Status shared;
    ForEachRun(sample, n, [&](uint64_t hash, size_t begin) {
      const auto [first, last] = runs.equal_range(hash);
      for (auto it = first; it != last && shared.ok(); ++it) {
        const auto [d, at] = it->second;
        const auto run = sample.begin() + static_cast<ptrdiff_t>(begin);
        if (!std::equal(run, run + static_cast<ptrdiff_t>(n),
                        evaluation.documents[d].begin() + static_cast<ptrdiff_t>(at))) {
          continue;
        }
        shared = absl::FailedPreconditionError(absl::StrFormat(
            "calibration and evaluation share %d tokens: calibration sample %d from token %d is "
            "evaluation document %d from token %d%s (calibration: %s; evaluation: %s)",
            n, s, begin, d, at, Quoted(tokenizer, std::span(sample).subspan(begin, n)),
            calibration.name, evaluation.name));
      }
    });
    RETURN_IF_ERROR(shared);
  }
  return absl::OkStatus();
}

}  // namespace

std::string_view BundledCalibrationText() { return kBundledCalibrationText; }

absl::StatusOr<CalibrationSet> MakeCalibrationSet(std::string_view bytes, const std::string& origin,
                                                  const Tokenizer* tokenizer, const ModelSpec& spec,
                                                  const CalibrationSize& size) {
  if (size.samples < 1 || size.window < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("calibration needs at least 1 window of 2 tokens: samples=", size.samples,
                     " window=", size.window));
  }
  ASSIGN_OR_RETURN(const CalibrationSource source,
                   ReadCalibrationSource(bytes, origin, tokenizer, spec, size.samples));
  return FromSource(source, origin, tokenizer, spec, size);
}

absl::StatusOr<CalibrationSet> LoadCalibrationSet(const std::string& path,
                                                  const Tokenizer* tokenizer, const ModelSpec& spec,
                                                  const CalibrationSize& size) {
  if (path.empty() && tokenizer == nullptr) return RandomCalibrationSet(spec, size);
  if (path.empty()) {
    return MakeCalibrationSet(BundledCalibrationText(), "bundled extract of WikiText-2", tokenizer,
                              spec, size);
  }
  ASSIGN_OR_RETURN(const auto file, MappedFile::Open(path));
  const auto* bytes = reinterpret_cast<const char*>(file->bytes().data());
  return MakeCalibrationSet({bytes, file->bytes().size()}, path, tokenizer, spec, size);
}

absl::Status CheckDisjoint(const CalibrationSet& calibration, const EvaluationSet& evaluation,
                           const Tokenizer* tokenizer) {
  std::set<size_t> lengths = {kSharedTokens};
  for (const TokenDocument& document : evaluation.documents) {
    if (document.size() >= kMinDocumentTokens) {
      lengths.insert(std::min(document.size(), kSharedTokens));
    }
  }
  for (const size_t n : lengths) RETURN_IF_ERROR(CheckRuns(calibration, evaluation, tokenizer, n));
  return absl::OkStatus();
}

std::string ToText(const CalibrationCoverage& c) {
  std::string text = absl::StrFormat(
      "%d windows, %d tokens, from %d documents of %.0f tokens (median; 10 %% below %.0f, 10 %% "
      "above %.0f, longest %.0f)",
      c.samples, c.sample_tokens, c.documents, c.median_tokens, c.p10_tokens, c.p90_tokens,
      c.longest_tokens);
  if (c.too_short > 0) absl::StrAppend(&text, ", ", c.too_short, " too short");
  absl::StrAppendFormat(&text, "\nchat: %.0f %% of the windows", 100 * c.chat_share());
  std::vector<std::pair<double, std::string>> scripts;
  for (const auto& [script, share] : c.scripts) scripts.emplace_back(share, script);
  std::sort(scripts.rbegin(), scripts.rend());
  if (!scripts.empty()) absl::StrAppend(&text, "\nscripts:");
  for (const auto& [share, script] : scripts) {
    absl::StrAppendFormat(&text, " %s %.1f %%", script, 100 * share);
  }
  return text;
}

}  // namespace assay
