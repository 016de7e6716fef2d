#include "engine/lifecycle/token_documents.h"

#include <algorithm>
#include <span>

#include "base/sha256.h"

namespace assay {
namespace {

constexpr size_t kMinSentenceBytes = 24;

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

}  // namespace

std::vector<std::string_view> SplitArticles(std::string_view text, int pieces) {
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

std::vector<std::string_view> SplitSentences(std::string_view text) {
  std::vector<std::string_view> sentences;
  for (std::string_view line : Lines(text)) {
    line = WithoutNewline(line);
    if (line.size() < 3 || line.substr(0, 2) == " =") continue;
    while (!line.empty()) {
      size_t end = std::min(line.find(" . "), line.find(". "));
      end = end == std::string_view::npos ? line.size() : line.find(' ', end + 1);
      if (end == std::string_view::npos) end = line.size();
      if (end >= kMinSentenceBytes) sentences.push_back(line.substr(0, end));
      line.remove_prefix(end);
    }
  }
  return sentences;
}

std::vector<size_t> SpreadIndices(size_t count, size_t wanted) {
  const size_t chosen = std::min(count, wanted);
  std::vector<size_t> indices(chosen);
  for (size_t i = 0; i < chosen; ++i) indices[i] = i * count / chosen;
  return indices;
}

void TruncateEncoded(size_t limit, TokenDocument* ids) {
  if (ids->size() <= limit) return;
  (*ids)[limit - 1] = ids->back();
  ids->resize(limit);
}

std::vector<TokenDocument> RandomDocuments(RandomDocumentShape shape, int vocab, uint64_t seed) {
  uint64_t state = seed;
  std::vector<TokenDocument> documents(shape.documents);
  for (TokenDocument& document : documents) {
    for (size_t i = 0; i < shape.tokens; ++i) {
      uint64_t z = (state += 0x9e3779b97f4a7c15u);
      z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
      z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
      document.push_back(static_cast<int32_t>((z ^ (z >> 31)) % static_cast<uint64_t>(vocab)));
    }
  }
  return documents;
}

std::string HashDocuments(const std::vector<TokenDocument>& documents) {
  Sha256 hash;
  for (const TokenDocument& document : documents) {
    const uint64_t size = document.size();
    hash.Update(std::as_bytes(std::span(&size, 1)));
    hash.Update(std::as_bytes(std::span(document)));
  }
  return hash.HexDigest();
}

}  // namespace assay
