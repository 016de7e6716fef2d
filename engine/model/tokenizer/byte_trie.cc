#include "engine/model/tokenizer/byte_trie.h"

#include <algorithm>

namespace assay {

ByteTrie::ByteTrie(std::vector<std::pair<std::string_view, int32_t>> entries)
    : nodes_(1), root_(256, -1) {
  std::sort(entries.begin(), entries.end());
  struct Range {  // the entries below one node
    size_t begin, end, depth;
  };
  std::vector<Range> ranges = {{0, entries.size(), 0}};  // of node i
  for (size_t n = 0; n < ranges.size(); ++n) {
    Range range = ranges[n];
    if (range.begin < range.end && entries[range.begin].first.size() == range.depth) {
      nodes_[n].value = entries[range.begin++].second;
    }
    nodes_[n].first_edge = static_cast<int32_t>(edge_bytes_.size());
    while (range.begin < range.end) {
      const char byte = entries[range.begin].first[range.depth];
      size_t end = range.begin + 1;
      while (end < range.end && entries[end].first[range.depth] == byte) ++end;
      edge_bytes_.push_back(static_cast<uint8_t>(byte));
      edge_targets_.push_back(static_cast<int32_t>(nodes_.size()));
      if (n == 0) root_[static_cast<uint8_t>(byte)] = static_cast<int32_t>(nodes_.size());
      nodes_.emplace_back();
      ranges.push_back({range.begin, end, range.depth + 1});
      ++nodes_[n].num_edges;
      range.begin = end;
    }
  }
}

int32_t ByteTrie::Child(int32_t node, uint8_t byte) const {
  if (nodes_.empty()) return -1;
  if (node == 0) return root_[byte];
  const auto begin = edge_bytes_.begin() + nodes_[node].first_edge;
  const auto end = begin + nodes_[node].num_edges;
  const auto found = std::lower_bound(begin, end, byte);
  return found == end || *found != byte ? -1 : edge_targets_[found - edge_bytes_.begin()];
}

std::optional<ByteTrie::Match> ByteTrie::LongestPrefix(std::string_view text) const {
  std::optional<Match> best;
  ForEachPrefix(text, [&](size_t length, int32_t value) { best = Match{length, value}; });
  return best;
}

}  // namespace assay
