// Names, paths and headers that clients send: each is taken or refused, and what is taken keeps to
// its alphabet; a path leads below the root.
#include <filesystem>

#include "server/metrics_format.h"
#include "server/model_paths.h"
#include "server/model_repository.h"
#include "server/request_record.h"
#include "server/status_charts.h"
#include "server/trace_context.h"
#include "tests/fuzz/require.h"
#include "tests/support/golden.h"

namespace assay {
namespace {

// A folder with a file, a folder, a link inside and one to the outside.
const std::string& Root() {
  static const auto& folder = *new TempDir;
  static const auto& root = *new std::string([] {
    const std::string at = std::filesystem::canonical(folder.path()).string() + "/root";
    std::filesystem::create_directories(at + "/m/1");
    std::filesystem::create_symlink("/etc", at + "/out");
    std::filesystem::create_symlink("m", at + "/in");
    std::filesystem::copy_file("/proc/self/comm", at + "/f");
    return at;
  }());
  return root;
}

void TakePath(const std::string& path) {
  static const auto& paths = *new ModelPaths(true, {Root()});
  const auto found = paths.Resolve(path);
  RequireCode(found.status(), absl::StatusCode::kPermissionDenied);
  if (!found.ok()) return;
  Require(found->starts_with(Root()), "a path outside of the root");
  Require(std::filesystem::canonical(*found).string().starts_with(Root()), "a link to the outside");
}

void TakeName(std::string_view text) {
  if (IsModelName(text)) {
    Require(!text.empty() && text.size() <= 128 && text[0] != '.', "a model's name");
    Require(text.find('/') == text.npos, "a model's name");
  }
  RequireCode(ParseVersion(std::string(text)).status(), absl::StatusCode::kInvalidArgument);
  RequireCode(VersionSelector::Create(1, std::string(text)).status(),
              absl::StatusCode::kInvalidArgument);
  Require(DecodePathSegment(EncodePathSegment(text)) == text, "a segment of a path");
  (void)DecodePathSegment(text);
  const std::string escaped = EscapeHtml(text);
  Require(escaped.find_first_of("<>\"'") == escaped.npos, "escaped text");
  (void)ParseTraceparent(text);
  (void)NegotiateMetricsFormat(text);
}

}  // namespace
}  // namespace assay

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text = assay::TextOf(data, size);
  assay::TakeName(text);
  // The file system is slow: what looks like a path alone, and not all of that.
  if (size < 64 && text.find('/') != text.npos) assay::TakePath(std::string(text));
  return 0;
}
