// The part of the status page about one version that has a report: traffic, precision of every
// layer, verification, why this recipe. Pure functions.
#pragma once
#include <string>

#include "engine/lifecycle/registry.h"
#include "server/traffic_history.h"

namespace assay {

// "12.3 MB"; "–" for none.
std::string BytesText(uint64_t bytes);
// "models/smollm2/1/report", relative to the page.
std::string ReportPath(const VersionInfo& version);
// HTML. `traffic`: as TrafficHistory::Last; may be empty.
std::string RenderTraffic(const std::vector<TrafficPoint>& traffic, bool generates);
std::string RenderReport(const AdmissionReport& report);

}  // namespace assay
