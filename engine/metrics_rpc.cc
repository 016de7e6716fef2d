// The grpc_server_* series of one method.
#include <array>
#include <atomic>
#include <iterator>

#include "engine/metrics_series.h"

namespace assay {
namespace {

// Names of gRPC's codes as the metrics of other servers spell them, in gRPC's order.
constexpr const char* kCodes[] = {
    "OK",       "Canceled",       "Unknown",          "InvalidArgument",   "DeadlineExceeded",
    "NotFound", "AlreadyExists",  "PermissionDenied", "ResourceExhausted", "FailedPrecondition",
    "Aborted",  "OutOfRange",     "Unimplemented",    "Internal",          "Unavailable",
    "DataLoss", "Unauthenticated"};
constexpr int kUnknown = 2;

// Seconds. As many edges as assay_inference_request_duration_seconds would be 3 series more for
// each of 32 methods.
const Buckets& RpcTime() {
  static const auto& b =
      *new Buckets{.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 10};
  return b;
}

class PrometheusRpcMetrics final : public RpcMetrics {
 public:
  PrometheusRpcMetrics(SeriesFactory& factory, Labels labels)
      : factory_(factory),
        labels_(std::move(labels)),
        started_(factory.AddCounter("grpc_server_started_total", "RPCs started", labels_)),
        received_(
            factory.AddCounter("grpc_server_msg_received_total", "Messages received", labels_)),
        sent_(factory.AddCounter("grpc_server_msg_sent_total", "Messages sent", labels_)),
        in_flight_(factory.AddGauge("assay_grpc_rpcs_in_flight", "RPCs being handled",
                                    {{"method", labels_.at("grpc_method")}})) {
    handled_[0] = &Handled(0);
  }

  void Started() override {
    started_.Increment();
    in_flight_.Increment();
  }
  void Done(int code, absl::Duration wall, int received, int sent) override {
    if (code < 0 || code >= static_cast<int>(std::size(kCodes))) code = kUnknown;
    received_.Increment(received);
    sent_.Increment(sent);
    Counter* handled = handled_[code].load(std::memory_order_acquire);
    if (handled == nullptr) handled_[code].store(handled = &Handled(code));
    handled->Increment();
    Histogram* seconds = seconds_.load(std::memory_order_acquire);
    if (seconds == nullptr) {
      seconds_.store(seconds = &factory_.AddHistogram("grpc_server_handling_seconds",
                                                      "Wall time of RPCs", labels_, RpcTime()));
    }
    seconds->Observe(absl::ToDoubleSeconds(wall));
    in_flight_.Decrement();
  }

 private:
  // The library gives the same series for the same labels, whoever comes first.
  Counter& Handled(int code) {
    return factory_.AddCounter("grpc_server_handled_total", "RPCs completed, by code",
                               With(labels_, "grpc_code", kCodes[code]));
  }

  SeriesFactory& factory_;
  const Labels labels_;
  Counter &started_, &received_, &sent_;
  Gauge& in_flight_;
  std::array<std::atomic<Counter*>, std::size(kCodes)> handled_{};  // set once
  std::atomic<Histogram*> seconds_{nullptr};                        // set once
};

}  // namespace

std::unique_ptr<RpcMetrics> NewRpcSeries(SeriesFactory& factory, std::string_view service,
                                         std::string_view method, std::string_view type) {
  return std::make_unique<PrometheusRpcMetrics>(factory,
                                                Labels{{"grpc_service", std::string(service)},
                                                       {"grpc_method", std::string(method)},
                                                       {"grpc_type", std::string(type)}});
}

}  // namespace assay
