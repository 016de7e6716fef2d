#include <nlohmann/json.hpp>

#include "absl/strings/str_replace.h"
#include "engine/lifecycle/report.h"
#include "engine/lifecycle/report_page.h"

namespace assay {

std::string ToHtml(const AdmissionReport& report) {
  // "<" cannot stand in the script element that holds the data: "</script" would end it. Invalid
  // UTF-8 in a name is replaced: a report must always be readable.
  const std::string json = absl::StrReplaceAll(
      ToJson(report).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace),
      {{"<", "\\u003c"}});
  return absl::StrReplaceAll(absl::string_view(kReportPage.data(), kReportPage.size()),
                             {{"{{REPORT}}", json}});
}

}  // namespace assay
