#include "server/quotas.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/retry_after.h"

namespace assay {
namespace {

constexpr size_t kManyClients = 4096;  // then those that have all their quota are forgotten
constexpr absl::Duration kLongestRetry = absl::Minutes(1);

}  // namespace

void Quotas::Fill(Client& client, absl::Time now) const {
  const double minutes = absl::ToDoubleMinutes(std::max(now - client.filled, absl::Duration()));
  client.tokens = std::min(capacity(), client.tokens + minutes * options_.tokens_per_minute);
  client.filled = now;
}

void Quotas::ForgetIdle(absl::Time now) {
  for (auto it = clients_.begin(); it != clients_.end();) {
    Fill(it->second, now);
    const bool idle = it->second.running == 0 && it->second.tokens >= capacity();
    it = idle ? clients_.erase(it) : std::next(it);
  }
}

absl::StatusOr<Quotas::Ticket> Quotas::Enter(const std::string& name) {
  if (!bounds()) return Ticket();
  const absl::Time now = clock_.Now();
  absl::Duration retry;
  bool many = false;
  {
    const MutexLock lock(mu_);
    if (clients_.size() >= kManyClients) ForgetIdle(now);
    const auto [it, is_new] = clients_.try_emplace(name);
    Client& client = it->second;
    if (is_new) {
      client.tokens = capacity();
      client.filled = now;
    }
    Fill(client, now);
    many = options_.max_concurrent > 0 && client.running >= options_.max_concurrent;
    const bool spent = options_.tokens_per_minute > 0 && client.tokens < 1;
    if (!many && !spent) {
      ++client.running;
      return Ticket(this, &client);
    }
    if (!many) retry = absl::Minutes((1 - client.tokens) / options_.tokens_per_minute);
  }
  metrics_.QuotaRejected(many ? Quota::kConcurrency : Quota::kTokens);
  if (many)
    return absl::ResourceExhaustedError(
        absl::StrCat("this client has as many requests in flight as it may: auth.max_concurrent=",
                     options_.max_concurrent));
  absl::Status status = absl::ResourceExhaustedError(absl::StrCat(
      "this client has used its tokens: auth.tokens_per_minute=", options_.tokens_per_minute));
  SetRetryAfter(std::min(retry, kLongestRetry), status);
  return status;
}

void Quotas::Leave(Client& client) {
  const MutexLock lock(mu_);
  --client.running;
}

void Quotas::Charge(Client& client, size_t tokens) {
  if (options_.tokens_per_minute <= 0) return;
  const absl::Time now = clock_.Now();
  const MutexLock lock(mu_);
  Fill(client, now);
  client.tokens -= static_cast<double>(tokens);
}

size_t Quotas::num_clients() const {
  const MutexLock lock(mu_);
  return clients_.size();
}

}  // namespace assay
