// Token ids out of NumPy's .npy files, which nobody vouches for. Pure.
// Format: numpy.org/doc/stable/reference/generated/numpy.lib.format.html, versions 1.0 to 3.0.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace assay {

inline constexpr std::string_view kNpyMagic = "\x93NUMPY";

// The rows of an array of int32 or int64, little-endian, C order: shape [n, t] gives n documents of
// t ids, shape [t] one. InvalidArgument begins with `origin` and names what is wrong: another
// element type, order or rank, a length that the header contradicts, an id outside of int32 (with
// its row and column), more than 2^26 elements.
absl::StatusOr<std::vector<std::vector<int32_t>>> ReadNpyRows(std::string_view bytes,
                                                              const std::string& origin);

}  // namespace assay
