#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "loadtest/report.h"

namespace assay::load {
namespace {

double Milliseconds(int64_t microseconds) { return static_cast<double>(microseconds) / 1000; }

// `whole`: with the buckets, from which any percentile follows.
Json LatencyJson(const Histogram& histogram, bool whole) {
  Json out{{"count", histogram.count()}};
  if (histogram.count() == 0) return out;
  out["mean"] = histogram.mean() / 1000;
  static const std::pair<const char*, double> kShown[] = {
      {"p50", 0.5}, {"p90", 0.9}, {"p95", 0.95}, {"p99", 0.99}, {"p99.9", 0.999}};
  for (const auto& [name, quantile] : kShown) {
    out[name] = Milliseconds(histogram.ValueAt(quantile));
  }
  out["max"] = Milliseconds(histogram.max());
  if (whole) {
    Json buckets = Json::array();
    for (const auto& [end, count] : histogram.Buckets()) {
      buckets.push_back({Milliseconds(end), count});
    }
    out["buckets"] = std::move(buckets);
  }
  return out;
}

Json FiguresJson(const Tally& tally, double seconds, bool whole) {
  const auto per_second = [&](int64_t count) {
    return seconds > 0 ? static_cast<double>(count) / seconds : 0.0;
  };
  const auto ok = tally.outcomes.find("OK");
  return {{"requests", tally.requests},
          {"outcomes", tally.outcomes},
          {"good", tally.good},
          {"ok_per_s", per_second(ok == tally.outcomes.end() ? 0 : ok->second)},
          {"goodput_per_s", per_second(tally.good)},
          {"tokens", tally.tokens},
          {"tokens_per_s", per_second(tally.tokens)},
          {"ttft_ms", LatencyJson(tally.first_token, whole)},
          {"itl_ms", LatencyJson(tally.inter_token, whole)},
          {"e2e_ms", LatencyJson(tally.end_to_end, whole)},
          {"failed_ms", LatencyJson(tally.failed, false)}};
}

bool IsClosed(const Phase& phase) { return phase.arrivals.process == Arrivals::Process::kClosed; }

Json LimitJson(const std::optional<absl::Duration>& limit) {
  return limit ? Json(absl::ToDoubleMilliseconds(*limit)) : Json(nullptr);
}

// Seconds from the phase's start until the first window of which nine requests in ten are good;
// null: never.
Json RecoverySeconds(const std::vector<Window>& windows, const PhaseRun& phase) {
  const double window_s = static_cast<double>(kWindowUs) / 1e6;
  for (size_t i = 0; i < windows.size(); ++i) {
    const double begin = static_cast<double>(i) * window_s;
    if (begin < phase.begin_s || begin + window_s > phase.end_s || windows[i].offered == 0)
      continue;
    if (10 * windows[i].good >= 9 * windows[i].offered) return begin - phase.begin_s;
  }
  return nullptr;
}

// What the open phases together say about overload; null with fewer than three.
Json SweepJson(const Scenario& scenario, const Recorder& recorder, const RunFacts& facts,
               const Json& phases) {
  std::vector<size_t> open;
  for (size_t i = 0; i < facts.phases.size(); ++i) {
    if (!IsClosed(scenario.phases[i]) && !scenario.phases[i].warm_up) open.push_back(i);
  }
  if (open.size() < 3) return nullptr;
  const auto goodput = [&](size_t i) { return phases[i]["goodput_per_s"].get<double>(); };
  const auto offered = [&](size_t i) { return phases[i]["offered_per_s"].get<double>(); };
  const size_t best = *std::max_element(
      open.begin(), open.end(), [&](size_t a, size_t b) { return goodput(a) < goodput(b); });
  const size_t most = *std::max_element(
      open.begin(), open.end(), [&](size_t a, size_t b) { return offered(a) < offered(b); });
  Json out{{"peak_goodput_per_s", goodput(best)},
           {"peak_phase", scenario.phases[best].name},
           {"heaviest_phase", scenario.phases[most].name},
           {"heaviest_offered_per_s", offered(most)},
           {"heaviest_goodput_per_s", goodput(most)},
           {"share_of_peak", goodput(best) > 0 ? Json(goodput(most) / goodput(best)) : Json()}};
  if (most + 1 < facts.phases.size() && !IsClosed(scenario.phases[most + 1])) {
    out["recovery_phase"] = scenario.phases[most + 1].name;
    out["recovery_s"] = RecoverySeconds(recorder.windows(), facts.phases[most + 1]);
  }
  return out;
}

Json SampleJson(const ServerSample& sample) {
  const auto value = [](const std::optional<double>& v) { return v ? Json(*v) : Json(nullptr); };
  return {{"at_s", sample.at_s},
          {"resident_bytes", value(sample.resident_bytes)},
          {"pending", value(sample.pending)},
          {"running", value(sample.running)},
          {"cpu_seconds", value(sample.cpu_seconds)},
          {"requests", sample.requests}};
}

Json ServerJson(const RunFacts& facts) {
  if (facts.before_and_after.size() < 2) return nullptr;
  const ServerSample &before = facts.before_and_after[0], &after = facts.before_and_after[1];
  Json samples = Json::array();
  double most = before.resident_bytes.value_or(0), pending = 0;
  for (const ServerSample& sample : facts.samples) {
    samples.push_back(SampleJson(sample));
    most = std::max(most, sample.resident_bytes.value_or(0));
    pending = std::max(pending, sample.pending.value_or(0));
  }
  Json handled = Json::object();
  for (const auto& [outcome, count] : after.requests) {
    const auto it = before.requests.find(outcome);
    handled[outcome] = count - (it == before.requests.end() ? 0 : it->second);
  }
  return {{"before", SampleJson(before)},
          {"after", SampleJson(after)},
          {"most_resident_bytes", std::max(most, after.resident_bytes.value_or(0))},
          {"most_pending", pending},
          {"handled", handled},
          {"samples", samples}};
}

Json WindowsJson(const std::vector<Window>& windows) {
  Json columns{{"seconds", static_cast<double>(kWindowUs) / 1e6}};
  for (const char* name : {"offered", "good", "ok", "failed", "tokens"}) {
    columns[name] = Json::array();
  }
  for (const Window& window : windows) {
    columns["offered"].push_back(window.offered);
    columns["good"].push_back(window.good);
    columns["ok"].push_back(window.ok);
    columns["failed"].push_back(window.failed);
    columns["tokens"].push_back(window.tokens);
  }
  return columns;
}

// Why the figures must not be used, and what must be known to use them.
void AddNotes(const Scenario& scenario, const Recorder& recorder, const RunFacts& facts,
              const Tally& counted, Json& report) {
  Json invalid = Json::array(), notes = Json::array();
  if (counted.requests == 0) invalid.push_back("no request was counted");
  const Histogram lateness = recorder.lateness();
  const double late_ms = Milliseconds(lateness.ValueAt(0.99));
  const double limit_ms = absl::ToDoubleMilliseconds(scenario.max_lateness);
  if (lateness.count() > 0 && late_ms > limit_ms) {
    invalid.push_back(absl::StrFormat(
        "the generator could not keep up: 1 %% of the requests were sent more than %.1f ms late, "
        "at most %.1f ms are allowed (max_lateness)",
        late_ms, limit_ms));
  }
  if (recorder.not_sent() > 0) {
    invalid.push_back(absl::StrFormat("%d requests were not sent, because %d were open (max_open)",
                                      recorder.not_sent(), scenario.max_open));
  }
  const bool closed = std::any_of(scenario.phases.begin(), scenario.phases.end(), IsClosed);
  if (closed) {
    notes.push_back(
        "closed phases hide stalls: while the server stands still they send nothing, so their "
        "latencies say little about waiting; they measure capacity");
  }
  if (!recorder.first_error().empty()) notes.push_back("first error: " + recorder.first_error());
  if (!facts.metrics_error.empty()) notes.push_back("metrics: " + facts.metrics_error);
  report["valid"] = invalid.empty();
  report["invalid"] = std::move(invalid);
  report["notes"] = std::move(notes);
}

}  // namespace

Json MakeReport(const Scenario& scenario, const Recorder& recorder, const RunFacts& facts) {
  Json report{{"schema", kReportSchema},  {"scenario", scenario.name},
              {"server", facts.server},   {"protocol", scenario.open_inference ? "oip" : "assay"},
              {"started", facts.started}, {"seed", scenario.seed},
              {"scale", facts.scale}};
  report["slo_ms"] = {{"ttft", LimitJson(scenario.slo.first_token)},
                      {"itl", LimitJson(scenario.slo.inter_token)},
                      {"e2e", LimitJson(scenario.slo.end_to_end)}};
  Tally all;
  std::vector<Tally> by_kind(scenario.kinds.size());
  double counted_s = 0;
  Json phases = Json::array();
  for (size_t i = 0; i < facts.phases.size(); ++i) {
    const PhaseRun& run = facts.phases[i];
    const Phase& phase = scenario.phases[i];
    Tally sum;
    for (size_t kind = 0; kind < scenario.kinds.size(); ++kind) {
      const Tally cell = recorder.cell(i, kind);
      sum.Merge(cell);
      if (!phase.warm_up) by_kind[kind].Merge(cell);
    }
    const double seconds = run.end_s - run.begin_s;
    Json entry{
        {"name", phase.name},
        {"loop", IsClosed(phase) ? "closed" : "open"},
        {"warm_up", phase.warm_up},
        {"begin_s", run.begin_s},
        {"seconds", seconds},
        {"planned_per_s", run.offered_per_s},
        {"offered_per_s", seconds > 0 ? static_cast<double>(recorder.offered(i)) / seconds : 0.0},
        {"clients", phase.arrivals.clients}};
    entry.update(FiguresJson(sum, seconds, false));
    phases.push_back(std::move(entry));
    if (phase.warm_up) continue;
    all.Merge(sum);
    counted_s += seconds;
  }
  report["seconds"] = counted_s;
  report["totals"] = FiguresJson(all, counted_s, true);
  AddNotes(scenario, recorder, facts, all, report);
  report["kinds"] = Json::object();
  for (size_t kind = 0; kind < by_kind.size(); ++kind) {
    report["kinds"][scenario.kinds[kind].name] = FiguresJson(by_kind[kind], counted_s, false);
  }
  report["sweep"] = SweepJson(scenario, recorder, facts, phases);
  report["phases"] = std::move(phases);
  report["capacity_per_s"] = facts.capacity_per_s > 0 ? Json(facts.capacity_per_s) : Json();
  report["generator"] = {{"late_ms", LatencyJson(recorder.lateness(), false)},
                         {"not_sent", recorder.not_sent()}};
  report["server_metrics"] = ServerJson(facts);
  report["windows"] = WindowsJson(recorder.windows());
  return report;
}

}  // namespace assay::load
