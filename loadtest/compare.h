// Two reports side by side: ratios of their figures, with the counts behind them.
#pragma once
#include "base/status.h"
#include "loadtest/report.h"

namespace assay::load {

struct Comparison {
  std::string markdown, html;
};

// `names` are shown. InvalidArgument: what is no report, or one of another schema.
absl::StatusOr<Comparison> Compare(const Json& a, const Json& b,
                                   const std::pair<std::string, std::string>& names);
// A report from a file: NotFound, InvalidArgument.
absl::StatusOr<Json> ReadReport(const std::string& path);

}  // namespace assay::load
