// Every scheme. A new family: its file, a line in kFamilies, in quant/schemes/schemes.h and in
// quant/CMakeLists.txt; the spellings of it that recipes use: lines in kSpellings, in the order in
// which reports list them.
#include <array>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "base/mutex.h"
#include "quant/scheme.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

constexpr std::array kFamilies = {
    SchemeFamily{"f32", "", MakeF32},
    SchemeFamily{"bf16", "", MakeBf16},
    SchemeFamily{"int8_channel", "", MakeInt8Channel},
    SchemeFamily{"int8_group", "g32, g64 or g128; sym or asym", MakeInt8Group},
    SchemeFamily{"int8_sparse", "f1, f2, f5 or f10: protected percent", MakeInt8Sparse},
    SchemeFamily{"fp8_e4m3", "tensor, channel or block", MakeFp8E4M3},
    SchemeFamily{"fp8_e5m2", "tensor, channel or block", MakeFp8E5M2},
    SchemeFamily{"int4_group",
                 "g32, g64, g128 or row; sym, asym, float (zero point), full (s = absmax / 7.5) or "
                 "signed_max",
                 MakeInt4Group},
    SchemeFamily{"w4a8", "g32, g64 or g128", MakeW4A8},
    SchemeFamily{"nf4", "a block b32, b64, ... b4096; double", MakeNf4},
    SchemeFamily{"fp4", "a block b32, b64, ... b4096; double", MakeFp4},
    SchemeFamily{"mxfp4", "", MakeMxfp4},
    SchemeFamily{"nvfp4", "", MakeNvfp4},
    SchemeFamily{"int3_group", "g32, g64, g128 or row; sym or asym", MakeInt3Group},
};
constexpr auto kSpellings = std::to_array<std::string_view>({
    "f32",
    "bf16",
    "int8_channel",
    "int8_group",
    "int8_group:g32",
    "int8_group:asym",
    "int8_sparse",
    "int8_sparse:f10",
    "fp8_e4m3",
    "fp8_e4m3:tensor",
    "fp8_e4m3:block",
    "fp8_e5m2",
    "int4_group",
    "int4_group:g32",
    "int4_group:row",
    "int4_group:asym",
    "int4_group:g32,asym",
    "int4_group:float",
    "int4_group:full",
    "int4_group:signed_max",
    "int4_group:g32,signed_max",
    "w4a8",
    "nf4",
    "nf4:double",
    "fp4",
    "fp4:double",
    "mxfp4",
    "nvfp4",
    "int3_group",
    "int3_group:asym",
});

// Objects by canonical spelling, never freed.
class Schemes {
 public:
  absl::StatusOr<const QuantScheme*> Get(std::unique_ptr<const QuantScheme> made) {
    const MutexLock lock(mutex_);
    const std::string name(made->name());
    return schemes_.try_emplace(name, std::move(made)).first->second.get();
  }

 private:
  Mutex mutex_;
  std::map<std::string, std::unique_ptr<const QuantScheme>> schemes_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<const QuantScheme*> FindScheme(std::string_view spelling) {
  static Schemes& schemes = *new Schemes;
  const size_t colon = spelling.find(':');
  std::vector<std::string> options;
  if (colon != std::string_view::npos)
    options = absl::StrSplit(std::string(spelling.substr(colon + 1)), ',');
  for (const SchemeFamily& family : kFamilies) {
    if (family.name != spelling.substr(0, colon)) continue;
    absl::StatusOr<std::unique_ptr<const QuantScheme>> made = family.make(options);
    if (made.ok()) return schemes.Get(*std::move(made));
    return absl::InvalidArgumentError(absl::StrCat(
        std::string(spelling), ": ", made.status().message(), "; ", std::string(family.name),
        family.options.empty() ? " takes no options" : " takes ", std::string(family.options)));
  }
  const auto append_name = [](std::string* out, const SchemeFamily& family) {
    absl::StrAppend(out, std::string(family.name));
  };
  return absl::NotFoundError(
      absl::StrCat("no quantization scheme of this name: ", std::string(spelling),
                   "; known: ", absl::StrJoin(kFamilies, ", ", append_name)));
}

std::span<const QuantScheme* const> AllSchemes() {
  static const auto& schemes = *new std::vector<const QuantScheme*>([] {
    std::vector<const QuantScheme*> found;
    found.reserve(kSpellings.size());
    for (const std::string_view spelling : kSpellings)
      found.push_back(FindScheme(spelling).value());
    return found;
  }());
  return schemes;
}

}  // namespace assay
