#include "engine/open_metrics.h"

#include <charconv>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"

namespace assay {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

constexpr const char* kUnits[] = {"seconds", "bytes", "ratio"};

// The shortest decimal that reads back as `value`; without an exponent where `fixed`.
void AppendNumber(double value, bool fixed, std::string& out) {
  if (!std::isfinite(value)) {
    out += std::isnan(value) ? "NaN" : value > 0 ? "+Inf" : "-Inf";
    return;
  }
  char digits[400];  // fixed: at most 309 before the point
  const auto end =
      fixed ? std::to_chars(std::begin(digits), std::end(digits), value, std::chars_format::fixed)
            : std::to_chars(std::begin(digits), std::end(digits), value);
  out.append(digits, end.ptr);
}

// Text of HELP lines and of label values.
void AppendEscaped(std::string_view text, std::string& out) {
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
}

// {a="x",b="y"}; with `bound`, le last, as a canonical number: what Go's %g writes, and ".0" behind
// whole ones. From 1e-4 to 1e20, where ours are, that is without an exponent.
void AppendLabels(const std::vector<ClientMetric::Label>& labels, const double* bound,
                  std::string& out) {
  if (labels.empty() && bound == nullptr) return;
  char separator = '{';
  for (const ClientMetric::Label& label : labels) {
    out += separator;
    absl::StrAppend(&out, label.name, "=\"");
    AppendEscaped(label.value, out);
    out += '"';
    separator = ',';
  }
  if (bound != nullptr) {
    out += separator;
    out += "le=\"";
    AppendNumber(*bound, /*fixed=*/true, out);
    if (std::isfinite(*bound) && *bound == std::floor(*bound)) out += ".0";
    out += '"';
  }
  out += '}';
}

void AppendSample(const std::string& name, const char* suffix,
                  const std::vector<ClientMetric::Label>& labels, const double* bound, double value,
                  std::string& out) {
  absl::StrAppend(&out, name, suffix);
  AppendLabels(labels, bound, out);
  out += ' ';
  AppendNumber(value, /*fixed=*/false, out);
}

void AppendExemplar(const Exemplar& exemplar, std::string& out) {
  absl::StrAppendFormat(&out, " # {trace_id=\"%016x%016x\"} ", exemplar.trace.high,
                        exemplar.trace.low);
  AppendNumber(exemplar.value, /*fixed=*/false, out);
  const int64_t ms = absl::ToUnixMillis(exemplar.at);
  absl::StrAppendFormat(&out, " %d.%03d", ms / 1000, ms % 1000);
}

void AppendHistogram(const std::string& name, const ClientMetric& metric,
                     const std::vector<Exemplar>* exemplars, std::string& out) {
  for (size_t i = 0; i < metric.histogram.bucket.size(); ++i) {
    const ClientMetric::Bucket& bucket = metric.histogram.bucket[i];
    AppendSample(name, "_bucket", metric.label, &bucket.upper_bound,
                 static_cast<double>(bucket.cumulative_count), out);
    if (exemplars != nullptr && (*exemplars)[i].trace) AppendExemplar((*exemplars)[i], out);
    out += '\n';
  }
  AppendSample(name, "_count", metric.label, nullptr,
               static_cast<double>(metric.histogram.sample_count), out);
  out += '\n';
  AppendSample(name, "_sum", metric.label, nullptr, metric.histogram.sample_sum, out);
  out += '\n';
}

const std::vector<Exemplar>* Find(const ExemplarsOfSeries& exemplars, const std::string& family,
                                  const std::vector<ClientMetric::Label>& labels) {
  // Families with exemplars are few: the others do not pay for the copy of the labels.
  const auto first = exemplars.lower_bound({family, {}});
  if (first == exemplars.end() || first->first.first != family) return nullptr;
  Labels wanted;
  for (const ClientMetric::Label& label : labels) wanted.emplace(label.name, label.value);
  const auto found = exemplars.find({family, wanted});
  return found == exemplars.end() ? nullptr : &found->second;
}

void AppendMetadata(const std::string& name, const MetricFamily& family, std::string& out) {
  const char* type = family.type == MetricType::Counter     ? "counter"
                     : family.type == MetricType::Histogram ? "histogram"
                                                            : "gauge";
  absl::StrAppend(&out, "# TYPE ", name, " ", type, "\n");
  for (const char* unit : kUnits) {
    if (absl::EndsWith(name, absl::StrCat("_", unit))) {
      absl::StrAppend(&out, "# UNIT ", name, " ", unit, "\n");
    }
  }
  absl::StrAppend(&out, "# HELP ", name, " ");
  AppendEscaped(family.help, out);
  out += '\n';
}

}  // namespace

std::string OpenMetricsText(const std::vector<MetricFamily>& families,
                            const ExemplarsOfSeries& exemplars) {
  std::string out;
  out.reserve(size_t{1} << 18);
  for (const MetricFamily& family : families) {
    if (family.metric.empty()) continue;  // its last series was removed
    const bool counter = family.type == MetricType::Counter;
    const std::string name(counter ? absl::StripSuffix(family.name, "_total") : family.name);
    AppendMetadata(name, family, out);
    for (const ClientMetric& metric : family.metric) {
      if (family.type == MetricType::Histogram) {
        AppendHistogram(name, metric, Find(exemplars, family.name, metric.label), out);
        continue;
      }
      AppendSample(name, counter ? "_total" : "", metric.label, nullptr,
                   counter ? metric.counter.value : metric.gauge.value, out);
      out += '\n';
    }
  }
  out += "# EOF\n";
  return out;
}

}  // namespace assay
