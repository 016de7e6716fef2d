// The counters behind ModelStatistics (Triton's statistics extension): they only grow, per version.
// Thread-safe.
#pragma once
#include <map>
#include <string>
#include <utility>

#include "absl/time/time.h"
#include "base/mutex.h"
#include "proto/open_inference/grpc_service.pb.h"

namespace assay {

// One request that has ended.
struct RequestTimes {
  absl::Duration total, queued, compute;
  int batch_requests = 1;  // encoders: how many requests shared the executed batch
  bool decoupled = false;  // several responses: counted in response_stats, too
  int responses = 1;
  int tokens = 0;  // generated
};

class Statistics {
 public:
  void Succeeded(const std::string& model, int64_t version, const RequestTimes& times,
                 absl::Time now) ABSL_LOCKS_EXCLUDED(mu_);
  void Failed(const std::string& model, int64_t version, const RequestTimes& times)
      ABSL_LOCKS_EXCLUDED(mu_);
  // Zeros for a version that has had no request.
  inference::ModelStatistics Get(const std::string& model, int64_t version) const
      ABSL_LOCKS_EXCLUDED(mu_);

 private:
  struct Total {
    uint64_t count = 0;
    absl::Duration time;
    void Add(absl::Duration d) {
      ++count;
      time += d;
    }
  };
  struct Entry {
    Total success, fail, queue, compute;
    uint64_t responses = 0;
    double executions = 0;  // a request that shared a batch of n counts 1/n
    absl::Time last;
    std::map<int, Total> by_batch;
  };
  static void Fill(const Total& total, inference::StatisticDuration& out);

  mutable Mutex mu_;
  std::map<std::pair<std::string, int64_t>, Entry> entries_ ABSL_GUARDED_BY(mu_);
};

}  // namespace assay
