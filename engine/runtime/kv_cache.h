// Who owns which block of the KV pool: pure bookkeeping over block numbers, no storage.
//
// A block is in use (some table holds it), cached (nobody holds it, but it still has the keys and
// values of a known prefix) or free. Full blocks are indexed by (content of the previous block,
// their tokens), so a block found in the index stands for exactly one prefix: tokens are compared,
// hashes only choose the bucket. When a table registers a block whose prefix is already indexed, it
// takes over the indexed one and gives its own back; hence the previous block of an indexed block
// is always indexed too, and equal prefixes are stored once. Cached blocks are evicted least
// recently used first, the end of a sequence before its beginning.
//
// Where the pool keeps rows in 16 bit too (KvFormat), a table holds one of its slots from its first
// Reserve to its Release. The slot has rows of the sequence's own computing alone, so such a cache
// finds no prefixes: blocks would come without them.
//
// Thread rule: loop thread only. After construction nothing allocates, apart from the growth of
// KvTable::blocks, which callers reserve.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "engine/ops/kv_pool.h"

namespace assay {

// The blocks of one sequence: blocks[i] holds positions [16 i, 16 i + 16).
struct KvTable {
  std::vector<int32_t> blocks;
  int32_t num_registered = 0;  // leading blocks that are in the prefix index
  int32_t slot = -1;           // of the pool, where it has any
};

class KvCache {
 public:
  static constexpr int kBlockTokens = KvPool::kBlockTokens;
  static constexpr int BlocksFor(int64_t tokens) {
    return static_cast<int>((tokens + kBlockTokens - 1) / kBlockTokens);
  }

  // `num_slots`: of the pool; with any, `prefix_cache` has no effect.
  KvCache(int num_blocks, bool prefix_cache, int num_slots = 0);

  // Lets an empty `table` hold the longest indexed prefix of `tokens`, in whole blocks and short of
  // the last token (its logits are needed, so it is always computed). Returns the number of
  // positions covered.
  int Attach(std::span<const int32_t> tokens, KvTable& table);
  // Grows `table` to cover `tokens` positions, evicting cached blocks where no free one is left.
  // False: not enough blocks, or no slot, nothing changed.
  bool Reserve(KvTable& table, int64_t tokens);
  // Says that the keys and values of `computed` (all tokens of the sequence so far) are in place:
  // indexes the blocks that became full. Entries of table.blocks may change.
  void Register(std::span<const int32_t> computed, KvTable& table);
  // Gives everything back; what is indexed stays cached.
  void Release(KvTable& table);

  int num_blocks() const { return num_blocks_; }
  int used_blocks() const { return num_blocks_ - free_blocks() - num_cached_; }
  int cached_blocks() const { return num_cached_; }
  int free_blocks() const { return static_cast<int>(free_.size()); }
  int available_blocks() const { return free_blocks() + num_cached_; }

 private:
  struct Block {
    int32_t references = 0;
    uint64_t content = 0;  // identity of the prefix that ends with this block; 0 = not indexed
    uint64_t parent = 0;   // content of the block before it; 0 = first of a sequence
    int32_t next_in_bucket = -1;
    int32_t older = -1, newer = -1;  // neighbours among the cached blocks
  };
  using BlockTokens = std::span<const int32_t, kBlockTokens>;

  int32_t* tokens_of(int32_t block) { return &tokens_[size_t{kBlockTokens} * block]; }
  size_t BucketOf(uint64_t parent, BlockTokens tokens) const;
  int32_t Find(uint64_t parent, BlockTokens tokens);  // -1: not indexed
  void Index(int32_t block, uint64_t parent, BlockTokens tokens);
  void Unindex(int32_t block);
  void Take(int32_t block);    // one reference more
  void Return(int32_t block);  // one reference less
  void Link(int32_t block);    // as the newest cached block
  void Unlink(int32_t block);
  int32_t Allocate();  // REQUIRES: available_blocks() > 0

  const int num_blocks_;
  const bool prefix_cache_;
  std::vector<Block> blocks_;    // [num_blocks + 1]; the last is the ring's sentinel
  std::vector<int32_t> tokens_;  // [num_blocks, kBlockTokens], of indexed blocks
  std::vector<int32_t> buckets_;
  std::vector<int32_t> free_;  // a stack
  const bool has_slots_;
  std::vector<int32_t> free_slots_;  // a stack
  int num_cached_ = 0;
  uint64_t next_content_ = 1;  // never reused
};

}  // namespace assay
