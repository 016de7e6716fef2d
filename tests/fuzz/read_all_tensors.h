// What both container targets demand of whatever they could open. A violation aborts: the fuzzer
// reports it.
#pragma once
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <vector>

#include "engine/model/checkpoint_layout.h"

namespace assay {

// Outside bytes are never our bug, and never anything else than wrong.
inline void RequireDocumentedCode(const absl::Status& status) {
  if (status.ok() || absl::IsDataLoss(status) || absl::IsInvalidArgument(status)) return;
  std::fprintf(stderr, "undocumented status: %s\n", status.ToString().c_str());
  std::abort();
}

// First and last rows of every tensor, up to 2^16 elements each.
inline void ReadAllTensors(std::span<const StoredTensor> tensors, std::span<const std::byte> file) {
  constexpr int64_t kMostElements = 1 << 16;
  for (const StoredTensor& tensor : tensors) {
    const int64_t rows = tensor.info.shape[0];
    if (rows == 0 || tensor.format->decode == nullptr) continue;
    const int64_t width = tensor.info.shape.elements() / rows;
    if (width > kMostElements) continue;
    const int64_t take = std::min(rows, kMostElements / std::max<int64_t>(width, 1));
    std::vector<float> out(static_cast<size_t>(take * width));
    for (const int64_t first : {int64_t{0}, rows - take}) {
      if (!DecodeRows(tensor, file, first, take, out).ok()) std::abort();
    }
  }
}

}  // namespace assay
