// The loop of byte-pair encoding in O(n log n): repeatedly joins the pair of neighbours with the
// lowest rank (the leftmost of equals) until no pair has one. Sennrich et al. 2016, with a heap
// instead of a scan for each merge. Thread rule: free functions.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <queue>
#include <utility>
#include <vector>

namespace assay {

struct MergeSymbol {
  int32_t id = -1;     // token, or -1 for a text that is none
  uint32_t begin = 0;  // bytes of the piece
  uint32_t end = 0;
  int32_t previous = -1;  // neighbours still alive; -1 at the ends
  int32_t next = -1;
  bool alive = true;
};

struct MergeRule {
  uint32_t rank = 0;  // lower first
  int32_t id = -1;    // the token that the pair becomes
};

inline void AppendSymbol(int32_t id, uint32_t begin, uint32_t end, std::vector<MergeSymbol>* out) {
  const auto index = static_cast<int32_t>(out->size());
  if (index > 0) out->back().next = index;
  out->push_back({.id = id, .begin = begin, .end = end, .previous = index - 1});
}

// find(left, right) -> std::optional<MergeRule> for two neighbouring symbols. Those merged into
// their left neighbour are left in place with alive = false.
template <typename Find>
void MergeSymbols(const Find& find, std::vector<MergeSymbol>* symbols) {
  struct Candidate {
    uint32_t rank;
    int32_t left;
    uint32_t end;  // of the pair: symbols only grow, so an outdated candidate no longer ends here
    int32_t id;
    bool operator>(const Candidate& other) const {
      return rank != other.rank ? rank > other.rank : left > other.left;
    }
  };
  std::vector<MergeSymbol>& all = *symbols;
  std::vector<Candidate> initial;
  initial.reserve(all.size());
  for (int32_t i = 0; i + 1 < static_cast<int32_t>(all.size()); ++i) {
    if (const std::optional<MergeRule> rule = find(all[i], all[i + 1])) {
      initial.push_back({rule->rank, i, all[i + 1].end, rule->id});
    }
  }
  std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue(std::greater<>(),
                                                                               std::move(initial));
  const auto propose = [&](int32_t left) {
    const int32_t right = all[left].next;
    if (right < 0) return;
    if (const std::optional<MergeRule> rule = find(all[left], all[right])) {
      queue.push({rule->rank, left, all[right].end, rule->id});
    }
  };
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    MergeSymbol& left = all[best.left];
    if (!left.alive || left.next < 0 || all[left.next].end != best.end) continue;
    MergeSymbol& right = all[left.next];
    left.id = best.id;
    left.end = right.end;
    left.next = right.next;
    right.alive = false;
    if (left.next >= 0) all[left.next].previous = best.left;
    if (left.previous >= 0) propose(left.previous);
    propose(best.left);
  }
}

}  // namespace assay
