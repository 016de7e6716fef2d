// JSON of the artifact cache: a manifest, a certificate (an admission's report), a rung of a
// ladder. What can be read gives the same again, and can be shown.
#include <nlohmann/json.hpp>

#include "engine/lifecycle/artifact.h"
#include "engine/lifecycle/report.h"
#include "tests/fuzz/require.h"

namespace assay {
namespace {

constexpr auto kLost = absl::StatusCode::kDataLoss;

void TakeManifest(const std::string& text) {
  const auto manifest = ArtifactManifestFromJson(text);
  RequireCode(manifest.status(), kLost);
  if (!manifest.ok()) return;
  const auto again = ArtifactManifestFromJson(ToJson(*manifest).dump());
  Require(again.ok() && again->artifact_hash == manifest->artifact_hash, "a manifest");
}

void TakeReport(const nlohmann::json& json) {
  const auto report = ReportFromJson(json);
  RequireCode(report.status(), kLost);
  if (!report.ok()) return;
  Require(ReportFromJson(ToJson(*report)).ok(), "a report");
  (void)ToTerminalText(*report, 80);
  (void)ToHtml(*report);
}

}  // namespace
}  // namespace assay

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string text(assay::TextOf(data, size));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, false);
  if (json.is_discarded()) return 0;
  assay::TakeManifest(text);
  assay::TakeReport(json);
  assay::RequireCode(assay::RungFromJson(json).status(), assay::kLost);
  return 0;
}
