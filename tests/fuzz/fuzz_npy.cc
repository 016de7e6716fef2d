// A .npy file of token ids. Every row and element was paid for by bytes.
#include "engine/lifecycle/npy.h"
#include "tests/fuzz/require.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto rows = assay::ReadNpyRows(assay::TextOf(data, size), "fuzz.npy");
  assay::RequireCode(rows.status(), absl::StatusCode::kInvalidArgument);
  if (!rows.ok()) return 0;
  size_t elements = 0;
  for (const auto& row : *rows) elements += row.size();
  assay::Require(elements * sizeof(int32_t) <= size, "elements without bytes");
  return 0;
}
