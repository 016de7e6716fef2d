// A static trie over byte strings: prefix search for added tokens, unigram pieces and word pieces.
// Thread rule: immutable once built.
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

namespace assay {

class ByteTrie {
 public:
  ByteTrie() = default;
  // Keys must be non-empty and distinct; their bytes are not kept.
  explicit ByteTrie(std::vector<std::pair<std::string_view, int32_t>> entries);

  bool empty() const { return nodes_.size() <= 1; }
  // visit(length, value) for every key that is a prefix of `text`, shortest first.
  template <typename Visit>
  void ForEachPrefix(std::string_view text, Visit visit) const {
    int32_t node = 0;
    for (size_t i = 0; i < text.size(); ++i) {
      node = Child(node, static_cast<uint8_t>(text[i]));
      if (node < 0) return;
      if (nodes_[node].value >= 0) visit(i + 1, nodes_[node].value);
    }
  }
  struct Match {
    size_t length;
    int32_t value;
  };
  std::optional<Match> LongestPrefix(std::string_view text) const;

 private:
  struct Node {
    int32_t first_edge = 0;
    int32_t num_edges = 0;
    int32_t value = -1;
  };
  int32_t Child(int32_t node, uint8_t byte) const;

  std::vector<Node> nodes_;
  std::vector<uint8_t> edge_bytes_;    // of node n: [first_edge, first_edge + num_edges), ascending
  std::vector<int32_t> edge_targets_;  // likewise
  std::vector<int32_t> root_;          // [256] children of the root, -1 where there is none
};

}  // namespace assay
