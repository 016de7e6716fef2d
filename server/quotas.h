// How much of the server one client may take: inference requests in flight, and tokens per minute
// (a bucket that holds a minute's worth; a request is let in while it is not empty, and what it
// uses is taken as it is used, so that one long answer may leave a debt that time pays back). A
// client is the name of its token, else the address it comes from.
//
// Thread rule: any thread.
#pragma once
#include <map>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "base/status.h"
#include "engine/metrics.h"

namespace assay {

struct QuotaOptions {
  int max_concurrent = 0;        // 0: no bound
  double tokens_per_minute = 0;  // 0: no bound
};

class Quotas {
  struct Client {
    int running = 0;
    double tokens = 0;  // left; below 0: a debt
    absl::Time filled;
  };

 public:
  // `clock` and `metrics` outlive this.
  Quotas(QuotaOptions options, const Clock& clock, Metrics& metrics)
      : options_(options), clock_(clock), metrics_(metrics) {}

  // Held by a request from acceptance to its last message. Empty where nothing is bounded.
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Quotas* quotas, Client* client) : quotas_(quotas), client_(client) {}
    Ticket(Ticket&& other) noexcept
        : quotas_(std::exchange(other.quotas_, nullptr)), client_(other.client_) {}
    Ticket& operator=(Ticket&& other) noexcept {
      std::swap(quotas_, other.quotas_);
      std::swap(client_, other.client_);
      return *this;
    }
    ~Ticket() {
      if (quotas_ != nullptr) quotas_->Leave(*client_);
    }
    // Tokens that were used.
    void Charge(size_t tokens) {
      if (quotas_ != nullptr) quotas_->Charge(*client_, tokens);
    }

   private:
    Quotas* quotas_ = nullptr;
    Client* client_ = nullptr;  // there while a ticket is
  };

  // ResourceExhausted: names the quota; says in a payload (SetRetryAfter) when to come back.
  absl::StatusOr<Ticket> Enter(const std::string& client) ABSL_LOCKS_EXCLUDED(mu_);
  bool bounds() const { return options_.max_concurrent > 0 || options_.tokens_per_minute > 0; }
  size_t num_clients() const ABSL_LOCKS_EXCLUDED(mu_);  // that are remembered

 private:
  void Leave(Client& client) ABSL_LOCKS_EXCLUDED(mu_);
  void Charge(Client& client, size_t tokens) ABSL_LOCKS_EXCLUDED(mu_);
  void Fill(Client& client, absl::Time now) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);
  void ForgetIdle(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mu_);

  const QuotaOptions options_;
  const Clock& clock_;
  Metrics& metrics_;
  mutable Mutex mu_;
  std::map<std::string, Client> clients_ ABSL_GUARDED_BY(mu_);  // nodes stay where they are
};

}  // namespace assay
