#include "quant/schemes/affine_group.h"

#include <array>

namespace assay {
namespace {

struct GridName {
  AffineGrid grid;
  std::string_view name;
};
constexpr std::array<GridName, 5> kGridNames = {{{AffineGrid::kSym, "sym"},
                                                 {AffineGrid::kFull, "full"},
                                                 {AffineGrid::kSignedMax, "signed_max"},
                                                 {AffineGrid::kAsym, "asym"},
                                                 {AffineGrid::kFloat, "float"}}};

std::string GroupName(int64_t group) { return group == 0 ? "row" : absl::StrCat("g", group); }

}  // namespace

absl::StatusOr<GroupOptions> ParseGroupOptions(std::span<const std::string> options,
                                               std::span<const int64_t> groups,
                                               std::span<const AffineGrid> grids) {
  GroupOptions parsed;
  bool has_group = false, has_grid = false;
  for (const std::string& option : options) {
    const auto group = std::find_if(groups.begin(), groups.end(),
                                    [&](int64_t g) { return GroupName(g) == option; });
    if (group != groups.end() && !has_group) {
      parsed.group = *group;
      has_group = true;
      continue;
    }
    const auto named = std::find_if(kGridNames.begin(), kGridNames.end(),
                                    [&](const GridName& g) { return g.name == option; });
    if (named != kGridNames.end() && !has_grid &&
        std::find(grids.begin(), grids.end(), named->grid) != grids.end()) {
      parsed.grid = named->grid;
      has_grid = true;
      continue;
    }
    return absl::InvalidArgumentError(
        absl::StrCat("unknown or second option of its kind \"", option, "\""));
  }
  return parsed;
}

std::string GroupSpelling(std::string_view family, const GroupOptions& options) {
  const GroupOptions defaults;
  std::string spelling(family);
  const char* separator = ":";
  if (options.group != defaults.group) {
    absl::StrAppend(&spelling, separator, GroupName(options.group));
    separator = ",";
  }
  if (options.grid != defaults.grid) {
    for (const GridName& g : kGridNames) {
      if (g.grid == options.grid) absl::StrAppend(&spelling, separator, std::string(g.name));
    }
  }
  return spelling;
}

uint16_t GroupScale(float quotient, float reach) {
  uint16_t scale = F32ToBf16(std::max(quotient, FLT_MIN));
  // Near the top of f32 a scale that rounded up may overflow when multiplied.
  while (std::isinf(Bf16ToF32(scale) * std::ceil(reach))) --scale;
  return scale;
}

}  // namespace assay
