// The kernels of linear layers that host code launches, of one world: the driver's or the
// emulator's.
#pragma once
#include "quant/kernels/cuda/bias_rows.h"
#include "quant/kernels/cuda/blocks_e4m3.h"
#include "quant/kernels/cuda/expand.h"
#include "quant/kernels/cuda/gemm16.h"
#include "quant/kernels/cuda/gemm_s8.h"
#include "quant/kernels/cuda/pad.h"
#include "quant/kernels/cuda/quantize.h"
#include "quant/kernels/cuda/quantize_groups.h"
#include "quant/kernels/cuda/quantize_tiles.h"
#include "quant/kernels/cuda/skinny.h"

namespace assay {

struct CudaLinearKernels {
  decltype(&cuda::Skinny) skinny;
  decltype(&cuda::Gemm16) gemm16;
  decltype(&cuda::GemmS8) gemm_s8;
  decltype(&cuda::Expand) expand;
  decltype(&cuda::QuantizeRows) quantize_rows;
  decltype(&cuda::QuantizeGroups) quantize_groups;
  decltype(&cuda::QuantizeNf4) quantize_nf4;
  decltype(&cuda::LargestOfTiles) largest_of_tiles;
  decltype(&cuda::QuantizeTiles) quantize_tiles;
  decltype(&cuda::QuantizeBlocks) quantize_blocks;
  decltype(&cuda::BlocksOfWeight) blocks_of_weight;
  decltype(&cuda::BiasRows) bias_rows;
  decltype(&cuda::Pad) pad;
};
#define ASSAY_CUDA_LINEAR_KERNELS(world)                                                 \
  {                                                                                      \
    .skinny = world::Skinny, .gemm16 = world::Gemm16, .gemm_s8 = world::GemmS8,          \
    .expand = world::Expand, .quantize_rows = world::QuantizeRows,                       \
    .quantize_groups = world::QuantizeGroups, .quantize_nf4 = world::QuantizeNf4,        \
    .largest_of_tiles = world::LargestOfTiles, .quantize_tiles = world::QuantizeTiles,   \
    .quantize_blocks = world::QuantizeBlocks, .blocks_of_weight = world::BlocksOfWeight, \
    .bias_rows = world::BiasRows, .pad = world::Pad                                      \
  }

// nullptr: built without a CUDA toolkit.
const CudaLinearKernels* DriverLinearKernels();
const CudaLinearKernels& EmulatedLinearKernels();  // of tests

}  // namespace assay
