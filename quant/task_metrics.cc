#include "quant/task_metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string_view>
#include <unordered_map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace assay {
namespace {

constexpr size_t kBleuOrder = 4, kChrfOrder = 6;
constexpr double kChrfBetaSquared = 4;

absl::Status CheckLabels(std::span<const int32_t> truth, std::span<const int32_t> predicted) {
  if (!truth.empty() && truth.size() == predicted.size()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "labels must be pairs, at least one: truth=", truth.size(), " predicted=", predicted.size()));
}

absl::Status CheckTexts(std::span<const ScoredText> texts) {
  if (texts.empty()) return absl::InvalidArgumentError("no texts to score: texts=0");
  for (size_t i = 0; i < texts.size(); ++i) {
    if (!texts[i].references.empty()) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("a text needs at least one reference: text=", i, " references=0"));
  }
  return absl::OkStatus();
}

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// The characters that mteval-v13a always sets apart: ASCII but letters, digits, ' , - and .
bool IsSymbol(char c) {
  return (c >= '{' && c <= '~') || (c >= '[' && c <= '`') || (c >= ' ' && c <= '&') ||
         (c >= '(' && c <= '+') || (c >= ':' && c <= '@') || c == '/';
}
bool IsStop(char c) { return c == '.' || c == ','; }

// Length in bytes of the white space (Python's str.split) that `text` begins with, or 0.
size_t SpaceLength(std::string_view text) {
  const auto c = static_cast<unsigned char>(text[0]);
  if (c == ' ' || (c >= 0x09 && c <= 0x0d) || (c >= 0x1c && c <= 0x1f)) return 1;
  for (const std::string_view wide :
       {"\xC2\x85", "\xC2\xA0", "\xE1\x9A\x80", "\xE2\x80\xA8", "\xE2\x80\xA9", "\xE2\x80\xAF",
        "\xE2\x81\x9F", "\xE3\x80\x80"}) {
    if (text.starts_with(wide)) return wide.size();
  }
  // U+2000 to U+200A: en quad to hair space.
  const bool wide = text.size() >= 3 && text.starts_with("\xE2\x80");
  return wide && static_cast<unsigned char>(text[2]) <= 0x8A ? 3 : 0;
}

// Replaces, from left to right and without overlap, each pair of bytes that `matches` by
// `before`, first, `between`, second, `after`.
struct PairRule {
  bool (*matches)(char first, char second);
  std::string_view before, between, after;
};
std::string Apply(const PairRule& rule, std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (i + 1 < text.size() && rule.matches(text[i], text[i + 1])) {
      out += rule.before;
      out += text[i];
      out += rule.between;
      out += text[i + 1];
      out += rule.after;
      ++i;
    } else {
      out += text[i];
    }
  }
  return out;
}

std::vector<std::string> SplitWords(std::string_view text) {
  std::vector<std::string> words(1);
  while (!text.empty()) {
    const size_t space = SpaceLength(text);
    if (space > 0 && !words.back().empty()) words.emplace_back();
    if (space == 0) words.back() += text[0];
    text.remove_prefix(std::max<size_t>(space, 1));
  }
  if (words.back().empty()) words.pop_back();
  return words;
}

// mteval-v13a, as sacrebleu's tokenizer "13a". Its patterns look at ASCII only, so bytes do.
std::vector<std::string> Tokenize13a(std::string_view line) {
  while (!line.empty()) {  // sacrebleu strips the end first, so a trailing "-\n" keeps its dash
    size_t begin = line.size() - 1;
    while (begin > 0 && (static_cast<unsigned char>(line[begin]) & 0xC0) == 0x80) --begin;
    if (SpaceLength(line.substr(begin)) != line.size() - begin) break;
    line.remove_suffix(line.size() - begin);
  }
  std::string text = absl::StrReplaceAll(std::string(line), {{"<skipped>", ""}});
  text = absl::StrReplaceAll(text, {{"-\n", ""}});
  text = absl::StrReplaceAll(text, {{"\n", " "}});
  static constexpr std::pair<const char*, const char*> kEntities[] = {
      {"&quot;", "\""}, {"&amp;", "&"}, {"&lt;", "<"}, {"&gt;", ">"}};
  for (const auto& [entity, character] : kEntities) {  // one after the other
    text = absl::StrReplaceAll(text, {{entity, character}});
  }
  std::string spaced = " ";
  for (const char c : text) {
    IsSymbol(c) ? absl::StrAppend(&spaced, " ", std::string(1, c), " ") : void(spaced += c);
  }
  spaced += "  ";
  static constexpr PairRule kRules[] = {
      {[](char a, char b) { return !IsDigit(a) && IsStop(b); }, "", " ", " "},
      {[](char a, char b) { return IsStop(a) && !IsDigit(b); }, " ", " ", ""},
      {[](char a, char b) { return IsDigit(a) && b == '-'; }, "", " ", " "},
  };
  for (const PairRule& rule : kRules) spaced = Apply(rule, spaced);
  return SplitWords(spaced);
}

using Counts = std::unordered_map<std::string, int64_t>;

// n-grams of `items`, joined by a byte that no item holds.
Counts CountGrams(const std::vector<std::string>& items, size_t n) {
  Counts counts;
  for (size_t i = 0; i + n <= items.size(); ++i) {
    std::string gram;
    for (size_t j = i; j < i + n; ++j) absl::StrAppend(&gram, items[j], std::string(1, '\0'));
    ++counts[gram];
  }
  return counts;
}

// Code points without white space.
std::vector<std::string> Characters(std::string_view text) {
  std::vector<std::string> characters;
  while (!text.empty()) {
    const size_t space = SpaceLength(text);
    size_t length = 1;
    while (length < text.size() && (static_cast<unsigned char>(text[length]) & 0xC0) == 0x80) {
      ++length;
    }
    if (space == 0) characters.emplace_back(text.substr(0, length));
    text.remove_prefix(std::max(space, length));
  }
  return characters;
}

struct BleuCounts {
  std::array<int64_t, kBleuOrder> correct{}, total{};
  int64_t hypothesis_length = 0, reference_length = 0;
};

void AddText(const ScoredText& text, BleuCounts& counts) {
  const std::vector<std::string> words = Tokenize13a(text.hypothesis);
  std::vector<std::vector<std::string>> references;
  for (const std::string& reference : text.references) {
    references.push_back(Tokenize13a(reference));
  }
  const auto distance = [&](const std::vector<std::string>& reference) {
    const auto a = static_cast<int64_t>(reference.size()), b = static_cast<int64_t>(words.size());
    return std::pair(std::abs(a - b), a);  // of two equally close ones, the shorter
  };
  const auto closest =
      std::min_element(references.begin(), references.end(),
                       [&](const auto& a, const auto& b) { return distance(a) < distance(b); });
  counts.hypothesis_length += static_cast<int64_t>(words.size());
  counts.reference_length += static_cast<int64_t>(closest->size());
  for (size_t n = 1; n <= kBleuOrder; ++n) {
    Counts most;
    for (const std::vector<std::string>& reference : references) {
      for (const auto& [gram, count] : CountGrams(reference, n)) {
        most[gram] = std::max(most[gram], count);
      }
    }
    for (const auto& [gram, count] : CountGrams(words, n)) {
      const auto found = most.find(gram);
      counts.total[n - 1] += count;
      if (found != most.end()) counts.correct[n - 1] += std::min(count, found->second);
    }
  }
}

// Of one order: n-grams of the hypothesis, of the reference, and of both.
struct GramMatch {
  int64_t hypothesis = 0, reference = 0, both = 0;
};
using ChrfCounts = std::array<GramMatch, kChrfOrder>;

GramMatch Match(const Counts& hypothesis, const Counts& reference) {
  GramMatch match;
  for (const auto& [gram, count] : reference) match.reference += count;
  for (const auto& [gram, count] : hypothesis) {
    // What the reference is too short for does not count against the hypothesis.
    match.hypothesis += reference.empty() ? 0 : count;
    const auto found = reference.find(gram);
    if (found != reference.end()) match.both += std::min(count, found->second);
  }
  return match;
}

double ChrfOf(const ChrfCounts& counts) {
  double precision = 0, recall = 0;
  int orders = 0;
  for (const GramMatch& m : counts) {
    if (m.hypothesis == 0 || m.reference == 0) continue;
    precision += static_cast<double>(m.both) / static_cast<double>(m.hypothesis);
    recall += static_cast<double>(m.both) / static_cast<double>(m.reference);
    ++orders;
  }
  if (orders == 0 || precision + recall == 0) return 0;
  precision /= orders;
  recall /= orders;
  return 100 * (1 + kChrfBetaSquared) * precision * recall /
         (kChrfBetaSquared * precision + recall);
}

ChrfCounts BestMatch(const ScoredText& text) {
  const std::vector<std::string> characters = Characters(text.hypothesis);
  ChrfCounts best{};
  double best_score = -1;
  for (const std::string& reference : text.references) {
    const std::vector<std::string> other = Characters(reference);
    ChrfCounts counts{};
    for (size_t n = 1; n <= kChrfOrder; ++n) {
      counts[n - 1] = Match(CountGrams(characters, n), CountGrams(other, n));
    }
    if (const double score = ChrfOf(counts); score > best_score) {
      best_score = score;
      best = counts;
    }
  }
  return best;
}

}  // namespace

absl::StatusOr<double> Accuracy(std::span<const int32_t> truth,
                                std::span<const int32_t> predicted) {
  RETURN_IF_ERROR(CheckLabels(truth, predicted));
  size_t same = 0;
  for (size_t i = 0; i < truth.size(); ++i) same += truth[i] == predicted[i] ? 1 : 0;
  return static_cast<double>(same) / static_cast<double>(truth.size());
}

absl::StatusOr<F1Scores> F1(std::span<const int32_t> truth, std::span<const int32_t> predicted) {
  RETURN_IF_ERROR(CheckLabels(truth, predicted));
  struct Tally {
    int64_t right = 0, wrong = 0;  // tp, fp + fn
  };
  std::map<int32_t, Tally> labels;
  Tally all;
  for (size_t i = 0; i < truth.size(); ++i) {
    if (truth[i] == predicted[i]) {
      ++labels[truth[i]].right;
      ++all.right;
    } else {
      ++labels[truth[i]].wrong;
      ++labels[predicted[i]].wrong;
      all.wrong += 2;
    }
  }
  const auto f1 = [](const Tally& t) {  // a label that occurs has a right or a wrong
    return 2.0 * static_cast<double>(t.right) / static_cast<double>(2 * t.right + t.wrong);
  };
  F1Scores scores{.micro = f1(all)};
  for (const auto& [label, tally] : labels) scores.macro += f1(tally);
  scores.macro /= static_cast<double>(labels.size());
  return scores;
}

absl::StatusOr<double> Bleu(std::span<const ScoredText> texts) {
  RETURN_IF_ERROR(CheckTexts(texts));
  BleuCounts counts;
  for (const ScoredText& text : texts) AddText(text, counts);
  const bool any = std::any_of(counts.correct.begin(), counts.correct.end(),
                               [](int64_t correct) { return correct > 0; });
  if (!any) return 0.0;
  double log_precision = 0, smoothing = 1;
  for (size_t n = 0; n < kBleuOrder; ++n) {
    if (counts.total[n] == 0) return 0.0;  // no text has as many words
    auto correct = static_cast<double>(counts.correct[n]);
    if (counts.correct[n] == 0) correct = 1 / (smoothing *= 2);
    log_precision += std::log(100 * correct / static_cast<double>(counts.total[n]));
  }
  const auto ratio =
      static_cast<double>(counts.reference_length) / static_cast<double>(counts.hypothesis_length);
  const double brevity = ratio > 1 ? std::exp(1 - ratio) : 1;
  return brevity * std::exp(log_precision / static_cast<double>(kBleuOrder));
}

absl::StatusOr<double> Chrf(std::span<const ScoredText> texts) {
  RETURN_IF_ERROR(CheckTexts(texts));
  ChrfCounts counts{};
  for (const ScoredText& text : texts) {
    const ChrfCounts best = BestMatch(text);
    for (size_t n = 0; n < kChrfOrder; ++n) {
      counts[n].hypothesis += best[n].hypothesis;
      counts[n].reference += best[n].reference;
      counts[n].both += best[n].both;
    }
  }
  return ChrfOf(counts);
}

}  // namespace assay
