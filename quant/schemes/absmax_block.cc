#include "quant/schemes/absmax_block.h"

#include <algorithm>

namespace assay {
namespace {

// torch.linspace(0.1, 1, parts + 1) in f32: each edge is rounded once and counted from the nearer
// end.
float Edge(int j, int parts) {
  const double step = (1.0f - 0.1f) / static_cast<float>(parts);
  return static_cast<float>(j < (parts + 1) / 2 ? 0.1f + step * j : 1.0 - step * (parts - j));
}

std::array<float, 256> MakeDynamicMap() {
  std::array<float, 256> map{};
  size_t filled = 0;
  for (int i = 0; i < 7; ++i) {
    const int parts = 1 << i;
    for (int j = 0; j < parts; ++j) {
      const float middle = (Edge(j, parts) + Edge(j + 1, parts)) / 2;
      const auto value = static_cast<float>(std::pow(10.0, i - 6)) * middle;
      map[filled++] = value;
      map[filled++] = -value;
    }
  }
  map[filled++] = 0;
  map[filled++] = 1;
  std::sort(map.begin(), map.end());
  return map;
}

bool ParseBlock(std::string_view option, int64_t& block) {
  for (int64_t size = 32; size <= 4096; size *= 2) {
    if (option != absl::StrCat("b", size)) continue;
    block = size;
    return true;
  }
  return false;
}

}  // namespace

const std::array<float, 256>& DynamicMap() {
  static const std::array<float, 256> map = MakeDynamicMap();
  return map;
}

absl::StatusOr<AbsmaxOptions> ParseAbsmaxOptions(std::span<const std::string> options) {
  AbsmaxOptions parsed;
  bool has_block = false;
  for (const std::string& option : options) {
    if (!has_block && ParseBlock(option, parsed.block)) {
      has_block = true;
    } else if (option == "double" && !parsed.nested) {
      parsed.nested = true;
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown or second option of its kind \"", option, "\""));
    }
  }
  return parsed;
}

std::string AbsmaxSpelling(std::string_view family, const AbsmaxOptions& options) {
  std::string spelling(family);
  const bool has_block = options.block != AbsmaxOptions().block;
  if (has_block) absl::StrAppend(&spelling, ":b", options.block);
  if (options.nested) absl::StrAppend(&spelling, has_block ? "," : ":", "double");
  return spelling;
}

void NestAbsmax(std::span<const float> absmax, QuantizedTensor& grid) {
  double sum = 0;
  for (const float a : absmax) sum += a;
  const auto offset = static_cast<float>(sum / static_cast<double>(absmax.size()));
  *grid.extra["nested_offset"].data<float>() = offset;
  const std::array<float, 256>& map = DynamicMap();
  std::array<float, 255> middles;
  for (size_t i = 0; i < 255; ++i) middles[i] = (map[i] + map[i + 1]) / 2;

  for (size_t begin = 0; begin < absmax.size(); begin += kNestedBlock) {
    const size_t end = std::min<size_t>(absmax.size(), begin + kNestedBlock);
    float most = 0;
    for (size_t i = begin; i < end; ++i) most = std::max(most, std::fabs(absmax[i] - offset));
    grid.extra["nested_absmax"].data<float>()[begin / kNestedBlock] = most;
    const float factor = 1 / std::max(most, 1e-38f);
    for (size_t i = begin; i < end; ++i) {
      const float v = std::clamp((absmax[i] - offset) * factor, -1.0f, 1.0f);
      grid.scales.data<uint8_t>()[i] = static_cast<uint8_t>(
          std::lower_bound(middles.begin(), middles.end(), v) - middles.begin());
    }
  }
}

}  // namespace assay
