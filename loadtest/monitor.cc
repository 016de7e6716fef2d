#include "loadtest/monitor.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace assay::load {

Monitor::Monitor(const Scenario& scenario, const Recorder& recorder, const Runner& runner,
                 std::string metrics, std::function<void(const std::string&)> show)
    : scenario_(scenario),
      recorder_(recorder),
      runner_(runner),
      metrics_(std::move(metrics)),
      show_(std::move(show)) {}

Monitor::~Monitor() { Stop(); }

void Monitor::Start(Instant start) {
  thread_ = std::thread([this, start] { Loop(start); });
}

void Monitor::Stop() {
  {
    MutexLock lock(mu_);
    stop_ = true;
    wake_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

std::string Monitor::Line(double seconds) const {
  const Progress progress = recorder_.progress();
  std::string line =
      absl::StrFormat("%4.0f s  %s: %d sent, %d open, %d ok", seconds,
                      scenario_.phases[runner_.current_phase()].name, progress.started,
                      progress.started - progress.ended, progress.ok);
  for (const auto& [code, count] : progress.errors) absl::StrAppend(&line, ", ", count, " ", code);
  const int64_t not_sent = recorder_.not_sent();
  if (not_sent > 0) absl::StrAppend(&line, ", ", not_sent, " not sent");
  return line;
}

void Monitor::Loop(Instant start) {
  MutexLock lock(mu_);
  for (Instant next = start; !stop_; next += std::chrono::seconds(1)) {
    while (!stop_ && SteadyClock::now() < next) wake_.WaitUntil(mu_, next);
    if (stop_) return;
    mu_.Unlock();
    const double seconds = std::chrono::duration<double>(SteadyClock::now() - start).count();
    if (show_) show_(Line(seconds));
    if (!metrics_.empty()) {
      absl::StatusOr<ServerSample> sample = ScrapeServer(metrics_);
      if (sample.ok()) {
        sample->at_s = seconds;
        samples_.push_back(*std::move(sample));
      } else if (error_.empty()) {
        error_ = std::string(sample.status().message());
      }
    }
    mu_.Lock();
  }
}

}  // namespace assay::load
