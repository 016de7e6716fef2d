// A file of tokens, a zero byte, a token that a client shows.
#include "server/access.h"
#include "tests/fuzz/require.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using assay::Require;
  const assay::Halves halves = assay::SplitAtZero(assay::TextOf(data, size));
  const auto table = assay::TokenTable::Parse(halves.first, "tokens");
  assay::RequireCode(table.status(), absl::StatusCode::kInvalidArgument);
  if (!table.ok()) return 0;
  for (const auto& entry : table->entries()) {
    Require(!entry.name.empty() && entry.roles != 0 && entry.hash.size() == 64, "a whole entry");
  }
  const auto* found = table->Find(halves.second);
  // Only who knows a token whose hash stands there gets in; nobody guesses one.
  Require(found == nullptr || found->hash.size() == 64, "an entry of the table");
  Require(!table->entries().empty() || found == nullptr, "an empty table lets nobody in");
  return 0;
}
