// OpenMetrics 1.0 text (https://prometheus.io/docs/specs/om/open_metrics_spec), which the library
// does not write: counters are named without _total in their metadata, bounds of buckets are
// canonical numbers ("1.0"), buckets may have an exemplar, the text ends in "# EOF". Pure function.
#pragma once
#include <string>
#include <vector>

#include "engine/metrics_series.h"

namespace assay {

// Only counters, gauges and histograms, which are all that we have; label values are UTF-8.
std::string OpenMetricsText(const std::vector<prometheus::MetricFamily>& families,
                            const ExemplarsOfSeries& exemplars);

}  // namespace assay
