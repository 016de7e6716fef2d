#include "engine/runtime/kv_cache.h"

#include <algorithm>
#include <bit>
#include <numeric>
#include <utility>

namespace assay {
namespace {

// Finalizer of SplitMix64 (Steele, Lea, Flood 2014).
uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

}  // namespace

KvCache::KvCache(int num_blocks, bool prefix_cache, int num_slots)
    : num_blocks_(num_blocks),
      prefix_cache_(prefix_cache && num_slots == 0),
      has_slots_(num_slots > 0) {
  blocks_.resize(static_cast<size_t>(num_blocks) + 1);
  Block& sentinel = blocks_.back();
  sentinel.older = sentinel.newer = num_blocks;
  tokens_.resize(static_cast<size_t>(num_blocks) * kBlockTokens);
  buckets_.assign(std::bit_ceil(static_cast<size_t>(num_blocks) * 2 + 1), -1);
  free_.resize(num_blocks);
  std::iota(free_.rbegin(), free_.rend(), 0);  // low numbers are handed out first
  free_slots_.resize(num_slots);
  std::iota(free_slots_.rbegin(), free_slots_.rend(), 0);
}

int KvCache::Attach(std::span<const int32_t> tokens, KvTable& table) {
  if (!prefix_cache_) return 0;
  uint64_t parent = 0;
  for (size_t begin = 0; begin + kBlockTokens < tokens.size(); begin += kBlockTokens) {
    const int32_t block = Find(parent, tokens.subspan(begin).first<kBlockTokens>());
    if (block < 0) break;
    Take(block);
    table.blocks.push_back(block);
    parent = blocks_[block].content;
  }
  table.num_registered = static_cast<int32_t>(table.blocks.size());
  return table.num_registered * kBlockTokens;
}

bool KvCache::Reserve(KvTable& table, int64_t tokens) {
  const int missing = BlocksFor(tokens) - static_cast<int>(table.blocks.size());
  const bool needs_slot = has_slots_ && table.slot < 0;
  if (missing > available_blocks() || (needs_slot && free_slots_.empty())) return false;
  if (needs_slot) {
    table.slot = free_slots_.back();
    free_slots_.pop_back();
  }
  for (int i = 0; i < missing; ++i) table.blocks.push_back(Allocate());
  return true;
}

void KvCache::Register(std::span<const int32_t> computed, KvTable& table) {
  if (!prefix_cache_) return;
  const int full = static_cast<int>(computed.size()) / kBlockTokens;
  for (int i = table.num_registered; i < full; ++i) {
    const uint64_t parent = i == 0 ? 0 : blocks_[table.blocks[i - 1]].content;
    const BlockTokens tokens =
        computed.subspan(static_cast<size_t>(i) * kBlockTokens).first<kBlockTokens>();
    const int32_t known = Find(parent, tokens);
    if (known < 0) {
      Index(table.blocks[i], parent, tokens);
    } else {  // computed twice at the same time: keep the one that others may already hold
      Take(known);
      Return(table.blocks[i]);
      table.blocks[i] = known;
    }
    table.num_registered = i + 1;
  }
}

void KvCache::Release(KvTable& table) {
  // From the end, so that the end of a sequence is evicted before what it depends on.
  for (auto block = table.blocks.rbegin(); block != table.blocks.rend(); ++block) Return(*block);
  table.blocks.clear();
  table.num_registered = 0;
  if (table.slot >= 0) free_slots_.push_back(std::exchange(table.slot, -1));
}

size_t KvCache::BucketOf(uint64_t parent, BlockTokens tokens) const {
  uint64_t hash = Mix(parent + 0x9e3779b97f4a7c15u);
  for (int32_t token : tokens) hash = Mix(hash ^ static_cast<uint32_t>(token));
  return hash & (buckets_.size() - 1);
}

int32_t KvCache::Find(uint64_t parent, BlockTokens tokens) {
  int32_t block = buckets_[BucketOf(parent, tokens)];
  while (block >= 0 && !(blocks_[block].parent == parent &&
                         std::ranges::equal(tokens, std::span(tokens_of(block), kBlockTokens)))) {
    block = blocks_[block].next_in_bucket;
  }
  return block;
}

void KvCache::Index(int32_t block, uint64_t parent, BlockTokens tokens) {
  std::ranges::copy(tokens, tokens_of(block));
  blocks_[block].parent = parent;
  blocks_[block].content = next_content_++;
  int32_t& head = buckets_[BucketOf(parent, tokens)];
  blocks_[block].next_in_bucket = head;
  head = block;
}

void KvCache::Unindex(int32_t block) {
  Block& b = blocks_[block];
  int32_t* link = &buckets_[BucketOf(b.parent, BlockTokens(tokens_of(block), kBlockTokens))];
  while (*link != block) link = &blocks_[*link].next_in_bucket;
  *link = b.next_in_bucket;
  b.content = b.parent = 0;
  b.next_in_bucket = -1;
}

void KvCache::Take(int32_t block) {
  if (blocks_[block].references++ == 0) Unlink(block);
}

void KvCache::Return(int32_t block) {
  if (--blocks_[block].references > 0) return;
  if (blocks_[block].content != 0) {
    Link(block);
  } else {
    free_.push_back(block);
  }
}

void KvCache::Link(int32_t block) {
  const int32_t newest = blocks_[num_blocks_].older;
  blocks_[block].older = newest;
  blocks_[block].newer = num_blocks_;
  blocks_[newest].newer = block;
  blocks_[num_blocks_].older = block;
  ++num_cached_;
}

void KvCache::Unlink(int32_t block) {
  blocks_[blocks_[block].older].newer = blocks_[block].newer;
  blocks_[blocks_[block].newer].older = blocks_[block].older;
  --num_cached_;
}

int32_t KvCache::Allocate() {
  int32_t block;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else {
    block = blocks_[num_blocks_].newer;  // the oldest cached one
    Unlink(block);
    Unindex(block);
  }
  blocks_[block].references = 1;
  return block;
}

}  // namespace assay
