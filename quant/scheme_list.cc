// Every scheme, in the order in which reports list them. A new scheme: its file, a line here, a
// line in quant/schemes/schemes.h and in quant/CMakeLists.txt.
#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "quant/scheme.h"
#include "quant/schemes/schemes.h"

namespace assay {

std::span<const QuantScheme* const> AllSchemes() {
  static const std::array<const QuantScheme*, 3> schemes = {&F32Scheme(), &Bf16Scheme(),
                                                            &Int8ChannelScheme()};
  return schemes;
}

absl::StatusOr<const QuantScheme*> FindScheme(std::string_view name) {
  for (const QuantScheme* scheme : AllSchemes()) {
    if (scheme->name() == name) return scheme;
  }
  const auto append_name = [](std::string* out, const QuantScheme* scheme) {
    absl::StrAppend(out, std::string(scheme->name()));
  };
  return absl::NotFoundError(
      absl::StrCat("no quantization scheme of this name: ", std::string(name),
                   "; known: ", absl::StrJoin(AllSchemes(), ", ", append_name)));
}

}  // namespace assay
