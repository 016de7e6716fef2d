// Series of prometheus-cpp that are made together and removed together, and the exemplars of some
// of them, which the library does not know. Only the metrics' own .cc files include this header.
// Thread rule: SeriesFactory is thread-safe; a SeriesGroup belongs to its owner.
#pragma once
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "engine/exemplars.h"
#include "engine/metrics.h"

namespace assay {

using prometheus::Counter;
using prometheus::Gauge;
using prometheus::Histogram;
using prometheus::Labels;
using Buckets = Histogram::BucketBoundaries;

inline Labels With(Labels labels, const char* key, std::string_view value) {
  labels[key] = std::string(value);
  return labels;
}

// By family and labels: the latest exemplar of each bucket.
using ExemplarsOfSeries = std::map<std::pair<std::string, Labels>, std::vector<Exemplar>>;

// The families of one registry, and what it takes to remove a series again.
class SeriesFactory {
 public:
  explicit SeriesFactory(const Clock& clock) : clock_(clock) {}
  absl::Time Now() const { return clock_.Now(); }

  Counter& AddCounter(const char* name, const char* help, const Labels& labels) {
    return FamilyOf(counters_, prometheus::BuildCounter(), name, help).Add(labels);
  }
  Gauge& AddGauge(const char* name, const char* help, const Labels& labels) {
    return FamilyOf(gauges_, prometheus::BuildGauge(), name, help).Add(labels);
  }
  Histogram& AddHistogram(const char* name, const char* help, const Labels& labels,
                          const Buckets& buckets) {
    return FamilyOf(histograms_, prometheus::BuildHistogram(), name, help).Add(labels, buckets);
  }
  void Remove(const char* name, Counter* series) { Find(counters_, name).Remove(series); }
  void Remove(const char* name, Gauge* series) { Find(gauges_, name).Remove(series); }
  void Remove(const char* name, Histogram* series) { Find(histograms_, name).Remove(series); }
  std::vector<prometheus::MetricFamily> Collect() const { return registry_.Collect(); }

  // A histogram of the same name, labels and buckets exists.
  std::shared_ptr<Exemplars> AddExemplars(const char* name, const Labels& labels,
                                          const Buckets& buckets) {
    auto made = std::make_shared<Exemplars>(buckets);
    MutexLock lock(mu_);
    exemplars_[{name, labels}] = made;
    return made;
  }
  void RemoveExemplars(const char* name, const Labels& labels) {
    MutexLock lock(mu_);
    exemplars_.erase({name, labels});
  }
  ExemplarsOfSeries CollectExemplars() const {
    ExemplarsOfSeries found;
    std::map<std::pair<std::string, Labels>, std::shared_ptr<Exemplars>> known;
    {
      MutexLock lock(mu_);
      known = exemplars_;
    }
    for (const auto& [series, exemplars] : known) found.emplace(series, exemplars->Latest());
    return found;
  }

 private:
  template <typename T>
  using Families = std::map<std::string, prometheus::Family<T>*, std::less<>>;

  template <typename T, typename Builder>
  prometheus::Family<T>& FamilyOf(Families<T>& known, Builder builder, const char* name,
                                  const char* help) {
    MutexLock lock(mu_);
    prometheus::Family<T>*& family = known[name];
    if (family == nullptr) family = &builder.Name(name).Help(help).Register(registry_);
    return *family;
  }
  template <typename T>
  prometheus::Family<T>& Find(Families<T>& known, const char* name) {
    MutexLock lock(mu_);
    return *known.find(name)->second;
  }

  const Clock& clock_;
  prometheus::Registry registry_;  // has its own lock
  mutable Mutex mu_;               // guards the maps; FamilyOf is the only writer of three of them
  Families<Counter> counters_;
  Families<Gauge> gauges_;
  Families<Histogram> histograms_;
  std::map<std::pair<std::string, Labels>, std::shared_ptr<Exemplars>> exemplars_
      ABSL_GUARDED_BY(mu_);
};

// Series that belong together and are removed together.
class SeriesGroup {
 public:
  explicit SeriesGroup(SeriesFactory& factory) : factory_(factory) {}
  ~SeriesGroup() {
    for (auto& [name, s] : counters_) factory_.Remove(name, s);
    for (auto& [name, s] : gauges_) factory_.Remove(name, s);
    for (auto& [name, s] : histograms_) factory_.Remove(name, s);
  }
  SeriesGroup(const SeriesGroup&) = delete;
  SeriesGroup& operator=(const SeriesGroup&) = delete;

  Counter* NewCounter(const char* name, const char* help, const Labels& labels) {
    return Remember(counters_, name, factory_.AddCounter(name, help, labels));
  }
  Gauge* NewGauge(const char* name, const char* help, const Labels& labels) {
    return Remember(gauges_, name, factory_.AddGauge(name, help, labels));
  }
  Histogram* NewHistogram(const char* name, const char* help, const Labels& labels,
                          const Buckets& buckets) {
    return Remember(histograms_, name, factory_.AddHistogram(name, help, labels, buckets));
  }
  template <size_t N>
  void NewCounters(Counter* (&out)[N], const char* name, const char* help, const Labels& labels,
                   std::pair<const char*, const char* const (&)[N]> values) {
    for (size_t i = 0; i < N; ++i) {
      out[i] = NewCounter(name, help, With(labels, values.first, values.second[i]));
    }
  }
  template <size_t N>
  void NewGauges(Gauge* (&out)[N], const char* name, const char* help, const Labels& labels,
                 std::pair<const char*, const char* const (&)[N]> values) {
    for (size_t i = 0; i < N; ++i) {
      out[i] = NewGauge(name, help, With(labels, values.first, values.second[i]));
    }
  }

 private:
  // The library gives the same series for the same labels: it is remembered, and removed, once.
  template <typename T>
  static T* Remember(std::vector<std::pair<const char*, T*>>& known, const char* name, T& series) {
    for (const auto& entry : known) {
      if (entry.second == &series) return &series;
    }
    return known.emplace_back(name, &series).second;
  }

  SeriesFactory& factory_;
  std::vector<std::pair<const char*, Counter*>> counters_;
  std::vector<std::pair<const char*, Gauge*>> gauges_;
  std::vector<std::pair<const char*, Histogram*>> histograms_;
};

// A histogram of a model version with an exemplar for each bucket.
class TracedHistogram {
 public:
  TracedHistogram(SeriesFactory& factory, SeriesGroup& group, const char* name, const char* help,
                  const Labels& labels, const Buckets& buckets)
      : factory_(factory),
        name_(name),
        labels_(labels),
        histogram_(group.NewHistogram(name, help, labels, buckets)),
        exemplars_(factory.AddExemplars(name, labels, buckets)) {}
  ~TracedHistogram() { factory_.RemoveExemplars(name_, labels_); }
  TracedHistogram(const TracedHistogram&) = delete;
  TracedHistogram& operator=(const TracedHistogram&) = delete;

  void Observe(absl::Duration value, TraceId trace) {
    const double seconds = absl::ToDoubleSeconds(value);
    histogram_->Observe(seconds);
    if (trace) exemplars_->Keep(seconds, trace, factory_.Now());
  }

 private:
  SeriesFactory& factory_;
  const char* const name_;
  const Labels labels_;
  Histogram* const histogram_;
  const std::shared_ptr<Exemplars> exemplars_;
};

template <size_t N>
std::pair<const char*, const char* const (&)[N]> Label(const char* key,
                                                       const char* const (&values)[N]) {
  return {key, values};
}

// The series of one model version (engine/metrics_model.cc), of its drift (engine/metrics_drift.cc)
// and of one method of gRPC (engine/metrics_rpc.cc). `factory` outlives them.
std::unique_ptr<ModelMetrics> NewModelMetrics(SeriesFactory& factory, std::string_view model,
                                              int64_t version);
Counter& DriftActionCounter(SeriesFactory& factory, std::string_view model, DriftAction action);
std::unique_ptr<DriftMetrics> NewDriftMetrics(SeriesFactory& factory, std::string_view model,
                                              int64_t version, std::string_view statistic);
std::unique_ptr<RpcMetrics> NewRpcSeries(SeriesFactory& factory, std::string_view service,
                                         std::string_view method, std::string_view type);

// Two histograms without a model are made at 0 by Metrics and filled by the series of models: how
// long each stage of an admission takes, and from its start until the version serves.
Histogram& AdmissionStageTime(SeriesFactory& factory, std::string_view stage);
Histogram& LoadTime(SeriesFactory& factory, std::string_view source);
inline constexpr const char* kLoadSources[] = {"artifact_cache", "quantize"};

}  // namespace assay
