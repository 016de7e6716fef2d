// Weights to E4M3 with a scale per tile of rows and columns, bit for bit as fp8_e4m3:block and
// :tensor (quant/schemes/fp8.cc), in two steps: the largest magnitude of each tile, then codes. The
// first step also says whether a matrix is finite: with one tile, larger than itself.
#pragma once
#include "quant/kernels/cuda/quantize.h"

namespace assay {

// How a matrix [rows, k] is cut; tiles lie row by row, those at the ends may be smaller.
struct Tiles {
  int rows = 128, columns = 128;  // of a tile; more than the matrix has: all
};
ASSAY_BOTH constexpr int TilesAlong(int size, int tile) {
  return tile >= size ? 1 : (size + tile - 1) / tile;
}
constexpr const char* TilesRefuse(const Tiles& tiles, int rows, int k) {
  if (rows < 1 || k < 1) return "quantizing needs rows and k of at least 1";
  if (tiles.rows < 1 || (tiles.rows < rows && tiles.rows % 64 != 0))
    return "tiles must have rows in multiples of 64";
  if (tiles.columns < 1 || (tiles.columns < k && tiles.columns % 128 != 0))
    return "tiles must have columns in multiples of 128";
  return nullptr;
}

struct LargestOfTilesArgs {
  const void* from = nullptr;  // Number [rows, k]
  // [tiles] bits of |w| in f32, where infinity and NaN rank last (0x7f800000 and above); what
  // stands there before takes part.
  int* largest = nullptr;
  int rows = 0, k = 0;
  Tiles tiles;
  Number number = Number::kF32;
};
// REQUIRES: TilesRefuse says null.
ASSAY_LAUNCHER(int LargestOfTiles(const LargestOfTilesArgs& args, const LaunchContext& context))

struct QuantizeTilesArgs {
  const void* from = nullptr;    // Number [rows, k]: all finite
  const int* largest = nullptr;  // [tiles], as above; of one tile it may be of more than `from`
  uint8_t* codes = nullptr;      // E4M3 [rows, k]
  float* scales = nullptr;       // [tiles]
  int rows = 0, k = 0;
  Tiles tiles;
  Number number = Number::kF32;
};
// REQUIRES: TilesRefuse says null.
ASSAY_LAUNCHER(int QuantizeTiles(const QuantizeTilesArgs& args, const LaunchContext& context))

}  // namespace assay
