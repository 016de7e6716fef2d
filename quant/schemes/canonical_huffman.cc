#include "quant/schemes/canonical_huffman.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace assay {
namespace {

// A symbol or a package of them: how often each occurs in it.
struct Item {
  int64_t weight = 0;
  std::array<uint8_t, 256> uses{};
};

bool Lighter(const Item& a, const Item& b) { return a.weight < b.weight; }

std::vector<Item> Pairs(const std::vector<Item>& items) {
  std::vector<Item> packages;
  for (size_t i = 0; i + 1 < items.size(); i += 2) {
    Item package = items[i];
    package.weight += items[i + 1].weight;
    for (size_t s = 0; s < 256; ++s) package.uses[s] += items[i + 1].uses[s];
    packages.push_back(package);
  }
  return packages;
}

}  // namespace

CodeLengths OptimalLengths(const std::array<int64_t, 256>& counts) {
  std::vector<Item> leaves;
  for (size_t s = 0; s < 256; ++s) {
    if (counts[s] == 0) continue;
    leaves.push_back({.weight = counts[s]});
    leaves.back().uses[s] = 1;
  }
  CodeLengths lengths{};
  if (leaves.empty()) return lengths;
  if (leaves.size() == 1) return leaves.front().uses;
  std::stable_sort(leaves.begin(), leaves.end(), Lighter);
  std::vector<Item> items = leaves;
  for (int level = 1; level < kMaxCodeLength; ++level) {
    const std::vector<Item> packages = Pairs(items);
    items.clear();
    std::merge(leaves.begin(), leaves.end(), packages.begin(), packages.end(),
               std::back_inserter(items), Lighter);
  }
  // A symbol's length is the number of its uses in the lightest 2 (m - 1) items.
  for (size_t i = 0; i < 2 * (leaves.size() - 1); ++i) {
    for (size_t s = 0; s < 256; ++s) lengths[s] += items[i].uses[s];
  }
  return lengths;
}

std::array<uint16_t, 256> CanonicalCodes(const CodeLengths& lengths) {
  std::array<uint16_t, 256> codes{};
  uint16_t next = 0;
  for (int length = 1; length <= kMaxCodeLength; ++length) {
    for (size_t s = 0; s < 256; ++s) {
      if (lengths[s] == length) codes[s] = next++;
    }
    next = static_cast<uint16_t>(next << 1);
  }
  return codes;
}

void AppendTile(std::span<const uint8_t> symbols, const CodeLengths& lengths,
                const std::array<uint16_t, 256>& codes, std::vector<uint8_t>& out) {
  const size_t begin = out.size();
  out.resize(begin + symbols.size() * kMaxCodeLength / 8 + 8);
  uint8_t* to = out.data() + begin;
  uint64_t bits = 0;
  int filled = 0;
  for (const uint8_t symbol : symbols) {
    bits = bits << lengths[symbol] | codes[symbol];
    filled += lengths[symbol];
    while (filled >= 8) {
      filled -= 8;
      *to++ = static_cast<uint8_t>(bits >> filled);
    }
  }
  if (filled > 0) *to++ = static_cast<uint8_t>(bits << (8 - filled));
  out.resize(static_cast<size_t>(to - out.data()));
}

absl::Status HuffmanDecoder::Init(std::span<const uint8_t> lengths) {
  size_t begin = 0;  // of 2^12: the part of all 12-bit words that the codes so far begin
  for (int length = 1; length <= kMaxCodeLength; ++length) {
    const size_t words = size_t{1} << (kMaxCodeLength - length);
    for (size_t s = 0; s < 256; ++s) {
      if (lengths[s] != length) continue;
      if (begin + words > table_.size()) {
        return absl::InvalidArgumentError(absl::StrCat(
            "code lengths are not those of a prefix code: symbol=", s, " length=", length));
      }
      std::fill_n(table_.begin() + static_cast<std::ptrdiff_t>(begin), words,
                  Entry{static_cast<uint8_t>(s), static_cast<uint8_t>(length)});
      begin += words;
    }
  }
  std::fill(table_.begin() + static_cast<std::ptrdiff_t>(begin), table_.end(), Entry{0, 0});
  const auto too_long = std::find_if(lengths.begin(), lengths.end(),
                                     [](uint8_t length) { return length > kMaxCodeLength; });
  if (too_long == lengths.end()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("code is longer than ", kMaxCodeLength,
                                                 " bits: symbol=", too_long - lengths.begin(),
                                                 " length=", static_cast<int>(*too_long)));
}

bool HuffmanDecoder::DecodeTile(std::span<const uint8_t> tile, std::span<uint8_t> symbols) const {
  uint64_t bits = 0;  // the next `filled` bits of the tile, and below them the ones before
  int filled = 0;
  int64_t used = 0;
  size_t next = 0;
  for (uint8_t& symbol : symbols) {
    while (filled < kMaxCodeLength) {  // behind the tile: zeros
      bits = bits << 8 | (next < tile.size() ? tile[next] : 0);
      ++next;
      filled += 8;
    }
    const Entry entry = table_[(bits >> (filled - kMaxCodeLength)) & (table_.size() - 1)];
    if (entry.length == 0) return false;
    symbol = entry.symbol;
    filled -= entry.length;
    used += entry.length;
  }
  return (used + 7) / 8 == static_cast<int64_t>(tile.size());
}

}  // namespace assay
