// The text of default.yaml, compiled in.
#pragma once
#include <string_view>

namespace assay {
extern const std::string_view kDefaultPolicyYaml;
}  // namespace assay
