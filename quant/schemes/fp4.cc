// Scheme "fp4[:b32..b4096][,double]": the 4-bit float of bitsandbytes: sign and eight magnitudes
// {0, 1/192, 2, 3, 4, 6, 8, 12} / 12. Default: blocks of 64. It is what a bare load_in_4bit
// means there. Byte layout, double quantization: quant/schemes/absmax_block.h.
//
//   | c1 c0 | c3 c2 | ... |   w ~ kValues[c] * absmax of the block
//   c: sign in bit 3; magnitudes by bits 0-2: 0, 0.0052, 0.6667, 1, 0.3333, 0.5, 0.1667, 0.25
//
// Code 8, minus zero, is never written.
#include "quant/schemes/absmax_block.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

struct Fp4 {
  static constexpr std::array<float, 16> kValues = {0.0f,
                                                    0.005208333333333333f,
                                                    0.6666666666666666f,
                                                    1.0f,
                                                    0.3333333333333333f,
                                                    0.5f,
                                                    0.16666666666666666f,
                                                    0.25f,
                                                    -0.0f,
                                                    -0.005208333333333333f,
                                                    -0.6666666666666666f,
                                                    -1.0f,
                                                    -0.3333333333333333f,
                                                    -0.5f,
                                                    -0.16666666666666666f,
                                                    -0.25f};
  // Ascending; between -1/192 and 1/192 both entries are code 0.
  static constexpr std::array<uint8_t, 16> kCodes = {11, 10, 13, 12, 15, 14, 9, 0,
                                                     0,  1,  6,  7,  4,  5,  2, 3};
  static constexpr uint8_t kZeroCode = 0;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeFp4(std::span<const std::string> options) {
  ASSIGN_OR_RETURN(const AbsmaxOptions parsed, ParseAbsmaxOptions(options));
  return std::make_unique<AbsmaxBlock<SortedBook<Fp4>>>("fp4", parsed);
}

}  // namespace assay
