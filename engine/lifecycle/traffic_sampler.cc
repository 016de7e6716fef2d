#include "engine/lifecycle/traffic_sampler.h"

#include <algorithm>
#include <cstring>
#include <limits>

namespace assay {
namespace {

// splitmix64's finalizer (Steele, Lea, Flood 2014) of the keyed number: every bit of the key and of
// the number moves every bit of the hash.
uint64_t Hash(uint64_t key, uint64_t number) {
  uint64_t z = key ^ (number * 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// Never beyond what a sum with the time of day can hold: 31 years.
int64_t FloorInterval(double per_hour) {
  return per_hour <= 0 ? 0 : static_cast<int64_t>(std::min(3600e9 / per_hour, 1e18));
}

template <typename T>
void WipeVector(std::vector<T>& values) {
  if (!values.empty()) explicit_bzero(values.data(), values.size() * sizeof(T));
  values.clear();
}

}  // namespace

void Wipe(ServedRequest& request) {
  WipeVector(request.tokens);
  WipeVector(request.logprobs);
  WipeVector(request.token_types);
}

void WipeTokens(std::vector<int32_t>& tokens) { WipeVector(tokens); }

TrafficSampler::TrafficSampler(const SamplerOptions& options, uint64_t key, const Clock& clock,
                               std::function<void()> arrived, std::function<void(Skip)> skipped)
    : options_(options),
      key_(key),
      clock_(clock),
      arrived_(std::move(arrived)),
      skipped_(std::move(skipped)),
      interval_ns_(FloorInterval(options.floor_per_hour)),
      due_ns_(absl::ToUnixNanos(clock.Now()) + interval_ns_) {}

TrafficSampler::~TrafficSampler() { Close(); }

bool TrafficSampler::Sample() {
  if (options_.rate <= 0 || closed_.load(std::memory_order_relaxed)) return false;
  const uint64_t number = requests_.fetch_add(1, std::memory_order_relaxed);
  const double place = static_cast<double>(Hash(key_, number)) /
                       static_cast<double>(std::numeric_limits<uint64_t>::max());
  const bool chosen = place < options_.rate || options_.rate >= 1;
  if (options_.floor_per_hour <= 0) return chosen;
  const int64_t now = absl::ToUnixNanos(clock_.Now());
  int64_t due = due_ns_.load(std::memory_order_relaxed);
  if (due > now + interval_ns_) {  // the clock was set back
    due = now + interval_ns_;
    due_ns_.store(due, std::memory_order_relaxed);
  }
  while (chosen || now >= due) {
    // From when it was due, not from now: else the floor falls behind by what it waits for
    // requests.
    const int64_t next = std::max(due, now - interval_ns_) + interval_ns_;
    if (due_ns_.compare_exchange_weak(due, std::min(next, now + interval_ns_))) return true;
  }
  return false;
}

void TrafficSampler::Served(ServedRequest request) {
  bool full = false;
  if (request.tokens.size() > options_.max_tokens) {
    Wipe(request);
    return skipped_(Skip::kTooLong);
  }
  {
    MutexLock lock(mu_);
    full = closed_.load(std::memory_order_relaxed) || ring_.size() >= options_.ring;
    if (!full) ring_.push_back(std::move(request));
  }
  if (!full) return arrived_();
  Wipe(request);
  skipped_(Skip::kRingFull);
}

std::optional<ServedRequest> TrafficSampler::Take() {
  MutexLock lock(mu_);
  if (ring_.empty()) return std::nullopt;
  std::optional<ServedRequest> request = std::move(ring_.front());
  ring_.pop_front();
  return request;
}

size_t TrafficSampler::waiting() const {
  MutexLock lock(mu_);
  return ring_.size();
}

void TrafficSampler::Close() {
  MutexLock lock(mu_);
  closed_.store(true, std::memory_order_relaxed);
  for (ServedRequest& request : ring_) Wipe(request);
  ring_.clear();
}

}  // namespace assay
