// One request to a server, from its start to its status, without a thread that waits for it.
#pragma once
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "loadtest/scenario.h"
#include "loadtest/schedule.h"
#include "proto/assay/v1/assay.grpc.pb.h"
#include "proto/open_inference/grpc_service.grpc.pb.h"

namespace assay::load {

using SteadyClock = std::chrono::steady_clock;
using Instant = SteadyClock::time_point;

// A request on its way: what was planned, and the moment that its latencies count from.
struct Dispatch {
  PlannedRequest planned;
  size_t phase = 0;
  Instant intended;
};

struct CallResult {
  Dispatch dispatch;
  grpc::Status status;
  bool cancelled_by_us = false;  // cancel_after, and the server had not finished by itself
  int64_t tokens = 0;            // of the answer; of the text for embeddings where the server says
  int64_t first_us =
      -1;               // from the intended moment to the first piece of the answer; -1: none came
  int64_t last_us = 0;  // likewise to the last
  int64_t end_us = 0;   // likewise to the status
  std::vector<int64_t> gaps_us;  // between pieces, as the client saw them
};
using CallDone = std::function<void(CallResult&&)>;

// Stubs over several connections, in turn. Thread-safe.
class Target {
 public:
  Target(const Scenario& scenario, const std::string& server);
  // False when no connection stood within so many seconds.
  bool WaitForConnection(double seconds) const;
  // Returns at once; `done` runs once, on a thread of gRPC, and must not block.
  void Start(const Dispatch& dispatch, CallDone done);

 private:
  struct Connection {
    std::shared_ptr<grpc::Channel> channel;
    std::unique_ptr<v1::AssayService::Stub> assay;
    std::unique_ptr<inference::GRPCInferenceService::Stub> inference;
  };
  const Scenario& scenario_;
  std::vector<Connection> connections_;
  std::atomic<size_t> next_ = 0;  // which connection is next
};

const char* CodeName(grpc::StatusCode code);

}  // namespace assay::load
