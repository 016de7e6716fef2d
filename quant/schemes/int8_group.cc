// Scheme "int8_group[:g32|g64|g128][,asym]": 8 bit, one bf16 scale per group of a row.
// Default: groups of 128, symmetric. The grids: quant/schemes/affine_group.h.
//
//   codes   sym:  s8 [n, k] row-major, in [-127, 127]   w ~ c * s
//           asym: u8 [n, k]                             w ~ (c - z) * s
//   scales  bf16 [n, groups]   groups = k / group rounded up: the last group of a row may be short
//   zeros   asym: u8 [n, groups]
//
//   | c[0,0] ... c[0,g-1] | c[0,g] ... | ... c[0,k-1] | c[1,0] ...      1 byte each
//     s[0,0], z[0,0]        s[0,1], z[0,1]              s[1,0], z[1,0]
#include <array>

#include "quant/schemes/affine_group.h"
#include "quant/schemes/schemes.h"

namespace assay {

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeInt8Group(
    std::span<const std::string> options) {
  static constexpr std::array<int64_t, 3> kGroups = {32, 64, 128};
  static constexpr std::array kGrids = {AffineGrid::kSym, AffineGrid::kAsym};
  ASSIGN_OR_RETURN(const GroupOptions parsed, ParseGroupOptions(options, kGroups, kGrids));
  if (parsed.grid == AffineGrid::kSym)
    return std::make_unique<AffineGroup<AffineFormat<8, -127, true>>>("int8_group", parsed);
  return std::make_unique<AffineGroup<AffineFormat<8, 0, false>>>("int8_group", parsed);
}

}  // namespace assay
