// Scheme "int3_group[:g32|g64|row][,asym]": 3 bit, one bf16 scale per group of a row. Default:
// groups of 128, symmetric. The grids: quant/schemes/affine_group.h.
//
//   codes   u8 [n, ceil(3k / 8)]  code i of a row at bits [3i, 3i + 3), lowest first: 8 codes fill
//                                 3 bytes; only the bits behind a row's last code are unused (0)
//           byte 0: c2[1:0] c1 c0 | byte 1: c5[0] c4 c3 c2[2] | byte 2: c7 c6 c5[2:1] | ...
//   scales  bf16 [n, groups]      groups = k / group rounded up: the last group may be short
//   zeros   asym: u8 [n, ceil(groups / 2)]  4 bits each, the even group in the low half
//
//   sym: w ~ (c - 4) * s, c in [1, 7]     asym: w ~ (c - z) * s, c, z in [0, 7]
#include <array>

#include "quant/schemes/affine_group.h"
#include "quant/schemes/schemes.h"

namespace assay {

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeInt3Group(
    std::span<const std::string> options) {
  static constexpr std::array<int64_t, 4> kGroups = {32, 64, 128, 0};
  static constexpr std::array kGrids = {AffineGrid::kSym, AffineGrid::kAsym};
  ASSIGN_OR_RETURN(const GroupOptions parsed, ParseGroupOptions(options, kGroups, kGrids));
  if (parsed.grid == AffineGrid::kSym)
    return std::make_unique<AffineGroup<AffineFormat<3, 1, false>>>("int3_group", parsed);
  return std::make_unique<AffineGroup<AffineFormat<3, 0, false>>>("int3_group", parsed);
}

}  // namespace assay
