#include "quant/methods/transform_list.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "quant/methods/method_options.h"

namespace assay {
namespace {

using Kind = OptionSpec::Kind;

constexpr std::array<std::string_view, 2> kGroups = {"all", "norm"};
constexpr OptionSpec kGroupsOption = {"groups", Kind::kWord, 0, 0, 0, kGroups};
constexpr std::array kSmoothQuant = {OptionSpec{"alpha", Kind::kNumber, 0.5, 0, 1, {}},
                                     OptionSpec{"search", Kind::kFlag, 0, 0, 0, {}}, kGroupsOption};
constexpr std::array kIterSmooth = {OptionSpec{"alpha", Kind::kNumber, 0.9, 0, 1, {}},
                                    kGroupsOption};
constexpr std::array kFlexSmooth = {kGroupsOption};
constexpr std::array kAwq = {OptionSpec{"grid", Kind::kNumber, 20, 1, 1000, {}},
                             OptionSpec{"plain", Kind::kFlag, 0, 0, 0, {}}, kGroupsOption};
constexpr std::array kHadamard = {OptionSpec{"seed", Kind::kNumber, 0, 0, 4294967295.0, {}}};

struct Family {
  std::string_view name;
  TransformKind kind;
  std::span<const OptionSpec> options;
};
constexpr std::array<Family, 5> kFamilies = {
    {{"smooth_quant", TransformKind::kSmoothQuant, kSmoothQuant},
     {"iter_smooth", TransformKind::kSmoothQuant, kIterSmooth},
     {"flex_smooth", TransformKind::kFlexSmooth, kFlexSmooth},
     {"awq", TransformKind::kAwq, kAwq},
     {"hadamard", TransformKind::kHadamard, kHadamard}}};
constexpr std::array<std::string_view, 5> kNames = {"smooth_quant", "iter_smooth", "flex_smooth",
                                                    "awq", "hadamard"};

}  // namespace

std::span<const std::string_view> AllTransforms() { return kNames; }

absl::StatusOr<TransformSpec> FindTransform(std::string_view spelling) {
  const size_t colon = spelling.find(':');
  const std::string_view text = colon == std::string_view::npos ? "" : spelling.substr(colon + 1);
  for (const Family& family : kFamilies) {
    if (family.name != spelling.substr(0, colon)) continue;
    ASSIGN_OR_RETURN(const MethodOptions options,
                     MethodOptions::Parse(family.name, text, family.options));
    TransformSpec spec{.kind = family.kind, .name = options.spelling()};
    if (family.kind == TransformKind::kHadamard) {
      spec.seed = static_cast<uint64_t>(options.number("seed"));
      return spec;
    }
    spec.norms_only = options.word("groups") == "norm";
    if (family.kind == TransformKind::kSmoothQuant) {
      spec.alpha = options.number("alpha");
      spec.from_output = family.name == "iter_smooth";
      spec.search = !spec.from_output && options.flag("search");
    }
    if (family.kind == TransformKind::kAwq) {
      spec.grid = static_cast<int64_t>(options.number("grid"));
      spec.duo = !options.flag("plain");
    }
    return spec;
  }
  return absl::NotFoundError(absl::StrCat(
      "no transform of this name: ", std::string(spelling), "; known: ",
      absl::StrJoin(kNames, ", ", [](auto* out, std::string_view name) { out->append(name); })));
}

}  // namespace assay
