#include "server/statistics.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"

namespace assay {

void Statistics::Succeeded(const std::string& model, int64_t version, const RequestTimes& times,
                           absl::Time now) {
  MutexLock lock(mu_);
  Entry& entry = entries_[{model, version}];
  entry.success.Add(times.total);
  entry.queue.Add(times.queued);
  entry.compute.Add(times.compute);
  entry.by_batch[times.batch_requests].Add(times.compute);
  entry.executions += 1.0 / std::max(1, times.batch_requests);
  if (times.decoupled) entry.responses += static_cast<uint64_t>(times.responses);
  entry.last = now;
}

void Statistics::Failed(const std::string& model, int64_t version, const RequestTimes& times) {
  MutexLock lock(mu_);
  entries_[{model, version}].fail.Add(times.total);
}

void Statistics::Fill(const Total& total, inference::StatisticDuration& out) {
  out.set_count(total.count);
  out.set_ns(static_cast<uint64_t>(absl::ToInt64Nanoseconds(total.time)));
}

inference::ModelStatistics Statistics::Get(const std::string& model, int64_t version) const {
  inference::ModelStatistics out;
  out.set_name(model);
  out.set_version(absl::StrCat(version));
  MutexLock lock(mu_);
  const auto it = entries_.find({model, version});
  const Entry entry = it == entries_.end() ? Entry() : it->second;
  out.set_inference_count(entry.success.count);
  out.set_execution_count(static_cast<uint64_t>(std::llround(entry.executions)));
  if (entry.success.count > 0) {
    out.set_last_inference(static_cast<uint64_t>(absl::ToUnixMillis(entry.last)));
  }
  inference::InferStatistics& stats = *out.mutable_inference_stats();
  Fill(entry.success, *stats.mutable_success());
  Fill(entry.fail, *stats.mutable_fail());
  Fill(entry.queue, *stats.mutable_queue());
  Fill(entry.compute, *stats.mutable_compute_infer());
  // Inputs and outputs are a few bytes here; their time is inside compute_infer.
  stats.mutable_compute_input()->set_count(entry.compute.count);
  stats.mutable_compute_output()->set_count(entry.compute.count);
  stats.mutable_cache_hit();
  stats.mutable_cache_miss();
  for (const auto& [size, total] : entry.by_batch) {
    inference::InferBatchStatistics& batch = *out.add_batch_stats();
    batch.set_batch_size(static_cast<uint64_t>(size));
    Fill(total, *batch.mutable_compute_infer());
    batch.mutable_compute_input()->set_count(total.count);
    batch.mutable_compute_output()->set_count(total.count);
  }
  if (entry.responses > 0) {
    (*out.mutable_response_stats())["0"].mutable_success()->set_count(entry.responses);
  }
  return out;
}

}  // namespace assay
