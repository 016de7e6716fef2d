#include "server/metrics_format.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"

namespace assay {
namespace {

struct MediaRange {
  absl::string_view type;
  absl::string_view version;  // empty: any
  double weight = 1;
};

// application/openmetrics-text; version=1.0.0; charset=utf-8; q=0.5
MediaRange ParseRange(absl::string_view text) {
  MediaRange range;
  for (absl::string_view part : absl::StrSplit(text, ';')) {
    part = absl::StripAsciiWhitespace(part);
    if (range.type.empty()) range.type = part;
    const std::pair<absl::string_view, absl::string_view> parameter =
        absl::StrSplit(part, absl::MaxSplits('=', 1));
    if (absl::EqualsIgnoreCase(parameter.first, "version")) range.version = parameter.second;
    if (absl::EqualsIgnoreCase(parameter.first, "q") &&
        !absl::SimpleAtod(parameter.second, &range.weight)) {
      range.weight = 0;
    }
  }
  return range;
}

}  // namespace

ExpositionFormat NegotiateMetricsFormat(std::string_view accept) {
  double open = 0, text = 0;
  for (const absl::string_view entry :
       absl::StrSplit(absl::string_view(accept.data(), accept.size()), ',')) {
    const MediaRange range = ParseRange(entry);
    if (absl::EqualsIgnoreCase(range.type, "application/openmetrics-text")) {
      if (range.version.empty() || range.version == "1.0.0") open = std::max(open, range.weight);
    } else if (absl::EqualsIgnoreCase(range.type, "text/plain")) {
      text = std::max(text, range.weight);
    }
  }
  return open > 0 && open >= text ? ExpositionFormat::kOpenMetrics : ExpositionFormat::kText;
}

const char* ContentType(ExpositionFormat format) {
  return format == ExpositionFormat::kOpenMetrics
             ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
             : "text/plain; version=0.0.4; charset=utf-8";
}

}  // namespace assay
