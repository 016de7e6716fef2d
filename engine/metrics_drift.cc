#include "engine/metrics_drift.h"

#include <iterator>

#include "engine/metrics_series.h"

namespace assay {
namespace {

constexpr const char* kResults[] = {"match", "mismatch"};
constexpr const char* kStates[] = {"ok", "warn", "violated"};
constexpr const char* kSkips[] = {"ring_full", "too_long", "failed", "not_serving"};
constexpr const char* kActions[] = {"alert", "refresh", "raise_precision", "roll_back",
                                    "serve_reference"};

class PrometheusDriftMetrics final : public DriftMetrics {
 public:
  PrometheusDriftMetrics(SeriesFactory& factory, std::string_view model, int64_t version,
                         std::string_view statistic)
      : m_{{"model", std::string(model)}, {"version", std::to_string(version)}}, group_(factory) {
    group_.NewCounters(results_, "assay_drift_shadow_samples_total",
                       "Live requests computed again on the reference", m_,
                       Label("result", kResults));
    group_.NewCounters(skips_, "assay_drift_skipped_total",
                       "Sampled requests that were not computed again", m_,
                       Label("reason", kSkips));
    group_.NewGauges(states_, "assay_drift_state", "1 for the verdict on live traffic, else 0", m_,
                     Label("state", kStates));
    tokens_ = group_.NewCounter("assay_drift_shadow_tokens_total",
                                "Tokens computed again on the reference", m_);
    cpu_ = group_.NewCounter("assay_drift_shadow_cpu_seconds_total", "CPU time of computing again",
                             m_);
    const Labels own = With(m_, "statistic", statistic);
    score_ = Statistic("assay_drift_score_ratio", "Mean difference to the reference", own);
    low_ = Statistic("assay_drift_score_low_ratio", "Lower end of its confidence band", own);
    high_ = Statistic("assay_drift_score_high_ratio", "Upper end of its confidence band", own);
    threshold_ = Statistic("assay_drift_threshold_ratio", "Its limit", own);
    if (statistic == "mean_kl") {
      const Labels flip = With(m_, "statistic", "top1_flip");
      flip_ = Statistic("assay_drift_score_ratio", "Mean difference to the reference", flip);
      flip_threshold_ = Statistic("assay_drift_threshold_ratio", "Its limit", flip);
    }
    e_value_ = group_.NewGauge("assay_drift_e_value",
                               "Evidence that the mean is above its limit; 1 = none", m_);
    change_ = group_.NewGauge("assay_drift_change_evidence",
                              "Evidence of a change above the limit; 1 = none", m_);
    last_ = group_.NewGauge("assay_drift_last_evaluation_timestamp_seconds",
                            "When a request was last computed again, Unix time", m_);
    shifted_ = group_.NewGauge("assay_drift_input_shifted",
                               "1 when the input is not what the version was admitted for", m_);
    saturation_ = group_.NewGauge(
        "assay_drift_input_saturation_ratio",
        "Share of a linear's input that its static scale cuts off, where it is worst", m_);
    range_ = group_.NewGauge("assay_drift_input_range_ratio",
                             "Largest input of a linear / the largest at admission, at most", m_);
    overlap_ = group_.NewGauge("assay_drift_input_outlier_overlap_ratio",
                               "Outlier channels at admission that still are, of all that are or "
                               "were",
                               m_);
    const char* help = "Population stability index against the first requests, beyond chance";
    length_psi_ =
        group_.NewGauge("assay_drift_input_psi_ratio", help, With(m_, "statistic", "length"));
    token_psi_ =
        group_.NewGauge("assay_drift_input_psi_ratio", help, With(m_, "statistic", "token"));
    SetInput({});
  }

  void ShadowDone(bool match, int tokens, double cpu_seconds) override {
    results_[match ? 0 : 1]->Increment();
    tokens_->Increment(tokens);
    cpu_->Increment(cpu_seconds);
  }
  void Skipped(DriftSkip why) override { skips_[static_cast<int>(why)]->Increment(); }
  void SetInput(const InputGauges& gauges) override {
    shifted_->Set(gauges.shifted ? 1 : 0);
    saturation_->Set(gauges.saturation);
    range_->Set(gauges.range);
    overlap_->Set(gauges.outlier_overlap);
    length_psi_->Set(gauges.length_psi);
    token_psi_->Set(gauges.token_psi);
  }
  void Set(const DriftGauges& gauges) override {
    for (int i = 0; i < static_cast<int>(std::size(kStates)); ++i)
      states_[i]->Set(gauges.state == i ? 1 : 0);
    score_->Set(gauges.score);
    low_->Set(gauges.low);
    high_->Set(gauges.high);
    threshold_->Set(gauges.threshold);
    if (flip_ != nullptr) flip_->Set(gauges.flip);
    if (flip_threshold_ != nullptr) flip_threshold_->Set(gauges.flip_threshold);
    e_value_->Set(gauges.e_value);
    change_->Set(gauges.change_evidence);
    if (gauges.last != absl::Time())
      last_->Set(absl::ToDoubleSeconds(gauges.last - absl::UnixEpoch()));
  }

 private:
  Gauge* Statistic(const char* name, const char* help, const Labels& labels) {
    return group_.NewGauge(name, help, labels);
  }

  const Labels m_;
  SeriesGroup group_;
  Counter *results_[2], *skips_[4], *tokens_, *cpu_;
  Gauge *states_[3], *score_, *low_, *high_, *threshold_, *e_value_, *change_, *last_;
  Gauge *shifted_, *saturation_, *range_, *overlap_, *length_psi_, *token_psi_;
  Gauge *flip_ = nullptr, *flip_threshold_ = nullptr;
};

}  // namespace

std::string_view Name(DriftAction action) { return kActions[static_cast<int>(action)]; }

Counter& DriftActionCounter(SeriesFactory& factory, std::string_view model, DriftAction action) {
  return factory.AddCounter("assay_drift_actions_total", "What was done about drift",
                            {{"model", std::string(model)}, {"action", std::string(Name(action))}});
}

std::unique_ptr<DriftMetrics> NewDriftMetrics(SeriesFactory& factory, std::string_view model,
                                              int64_t version, std::string_view statistic) {
  return std::make_unique<PrometheusDriftMetrics>(factory, model, version, statistic);
}

}  // namespace assay
