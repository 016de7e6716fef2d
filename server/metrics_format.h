// Which format of /metrics a scraper wants. Pure functions.
#pragma once
#include <string_view>

#include "engine/metrics.h"

namespace assay {

// From the Accept header of the request (RFC 9110, section 12.5.1). Prometheus text where nothing
// is said, or nothing that we have. A browser and curl get text, Prometheus gets OpenMetrics.
ExpositionFormat NegotiateMetricsFormat(std::string_view accept);

const char* ContentType(ExpositionFormat format);

}  // namespace assay
