// Scheme "nf4[:b32..b4096][,double]": 4-bit NormalFloat of QLoRA (Dettmers et al. 2023), the
// quantiles of a normal distribution in [-1, 1]; code book of bitsandbytes. Default: blocks of 64.
// Byte layout, double quantization: quant/schemes/absmax_block.h.
//
//   | c1 c0 | c3 c2 | ... |   w ~ kValues[c] * absmax of the block; code 7 is 0
#include "quant/schemes/absmax_block.h"
#include "quant/schemes/schemes.h"

namespace assay {
namespace {

struct Nf4 {
  static constexpr std::array<float, 16> kValues = {-1.0f,
                                                    -0.6961928009986877f,
                                                    -0.5250730514526367f,
                                                    -0.39491748809814453f,
                                                    -0.28444138169288635f,
                                                    -0.18477343022823334f,
                                                    -0.09105003625154495f,
                                                    0.0f,
                                                    0.07958029955625534f,
                                                    0.16093020141124725f,
                                                    0.24611230194568634f,
                                                    0.33791524171829224f,
                                                    0.44070982933044434f,
                                                    0.5626170039176941f,
                                                    0.7229568362236023f,
                                                    1.0f};
  static constexpr std::array<uint8_t, 16> kCodes = {0, 1, 2,  3,  4,  5,  6,  7,
                                                     8, 9, 10, 11, 12, 13, 14, 15};
  static constexpr uint8_t kZeroCode = 7;
};

}  // namespace

absl::StatusOr<std::unique_ptr<const QuantScheme>> MakeNf4(std::span<const std::string> options) {
  ASSIGN_OR_RETURN(const AbsmaxOptions parsed, ParseAbsmaxOptions(options));
  return std::make_unique<AbsmaxBlock<SortedBook<Nf4>>>("nf4", parsed);
}

}  // namespace assay
