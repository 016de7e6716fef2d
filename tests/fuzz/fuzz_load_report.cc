// What the load generator reads back: its own reports, and a server's metrics.
#include "loadtest/compare.h"
#include "loadtest/server_metrics.h"
#include "tests/fuzz/require.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text = assay::TextOf(data, size);
  (void)assay::load::ParseServerMetrics(text);
  const auto json = assay::load::Json::parse(text, nullptr, false);
  if (json.is_discarded()) return 0;
  const auto both = assay::load::Compare(json, json, {"a", "b"});
  assay::RequireCode(both.status(), absl::StatusCode::kInvalidArgument);
  assay::Require(!both.ok() || !both->markdown.empty(), "a comparison");
  return 0;
}
