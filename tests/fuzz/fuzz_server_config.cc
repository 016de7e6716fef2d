// A configuration file of the server. What is taken prints as YAML that gives the same again.
#include <sys/mman.h>
#include <unistd.h>

#include "absl/strings/str_cat.h"
#include "server/config.h"
#include "tests/fuzz/require.h"

namespace assay {
namespace {

// LoadConfig over a file that is in memory only.
absl::StatusOr<EffectiveConfig> Load(std::string_view yaml) {
  const int fd = memfd_create("fuzz", MFD_CLOEXEC);
  Require(fd >= 0 && write(fd, yaml.data(), yaml.size()) == static_cast<ssize_t>(yaml.size()),
          "the fuzzer's own file");
  auto loaded = LoadConfig(
      {.yaml_path = absl::StrCat("/proc/self/fd/", fd), .flags = {}, .environment = nullptr});
  close(fd);
  return loaded;
}

}  // namespace
}  // namespace assay

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using assay::Require;
  const auto loaded = assay::Load(assay::TextOf(data, size));
  assay::RequireCode(loaded.status(), absl::StatusCode::kInvalidArgument);
  if (!loaded.ok()) return 0;
  const std::string printed = assay::Print(*loaded);
  const auto again = assay::Load(printed);
  if (!again.ok())
    std::fprintf(stderr, "%s\n%s\n", again.status().ToString().c_str(), printed.c_str());
  Require(again.ok(), "what was printed cannot be read");
  for (const assay::ConfigOption& option : assay::AllConfigOptions()) {
    Require(option.show(loaded->config) == option.show(again->config), option.key.c_str());
  }
  return 0;
}
