// Ends RPCs whose clients do not read. gRPC holds an answer that cannot be sent, because the
// client's window or its socket is full, for as long as the client likes, and with it the RPC: its
// place in a batch, its text, its quota. The interceptor (rpc_metrics.h) says when an answer begins
// and has gone; Look cancels what has been on its way for too long, with RESOURCE_EXHAUSTED.
//
// Thread rule: any thread.
#pragma once
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/time/time.h"
#include "base/clock.h"
#include "base/mutex.h"
#include "engine/metrics.h"

struct grpc_call;

namespace assay {

class UnreadWatch {
 public:
  // `limit` 0: none. `clock` (a steady one) and `metrics` outlive this.
  UnreadWatch(absl::Duration limit, const Clock& clock, Metrics& metrics)
      : limit_(limit), clock_(clock), metrics_(metrics) {}
  ~UnreadWatch();

  // An answer of `call` is given to gRPC; nothing happens while one is on its way.
  void Begin(grpc_call* call, const std::string& method) ABSL_LOCKS_EXCLUDED(mu_);
  void End(grpc_call* call) ABSL_LOCKS_EXCLUDED(mu_);  // it has gone, or the RPC is over
  // To be called now and then, by a thread that gRPC may call back on.
  void Look() ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Sending {
    absl::Time since;
    std::string method;
    bool cut = false;
  };
  const absl::Duration limit_;
  const Clock& clock_;
  Metrics& metrics_;
  Mutex mu_;
  absl::flat_hash_map<grpc_call*, Sending> sending_ ABSL_GUARDED_BY(mu_);  // each referenced
};

}  // namespace assay
