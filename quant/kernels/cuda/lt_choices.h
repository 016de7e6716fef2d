// Which of cuBLASLt's algorithms was the fastest for a product, kept on disk: timing them takes
// seconds per model, and what was found holds for this GPU, driver and library. One JSON file each:
//
//   {"schema": 1,
//    "found_on": {"gpu": "NVIDIA H100", "compute": 90, "driver": 13000, "library": 130001},
//    "choices": [{"m": 128, "n": 4096, "k": 4096, "operands": 28, "scales": 3,
//                 "algorithm": ["1a", ..., "0"], "workspace": 1024}, ...]}
//
// `algorithm`: eight words of the library's, in hexadecimal. Not thread-safe.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <tuple>

#include "quant/kernels/cuda/cublas_lt.h"

namespace assay {

// Results are f32.
struct LtShape {
  int n = 0, k = 0;
  LtType operands = LtType::kBf16;
  LtScales scales = LtScales::kNone;
};
inline LtProblem ProblemOf(const LtShape& shape, int rows) {
  return {.m = rows,
          .n = shape.n,
          .k = shape.k,
          .operands = shape.operands,
          .out = LtType::kF32,
          .scales = shape.scales};
}
inline auto TieOf(const LtShape& s) { return std::tuple(s.n, s.k, s.operands, s.scales); }
inline bool operator<(const LtShape& a, const LtShape& b) { return TieOf(a) < TieOf(b); }

struct LtFoundOn {
  std::string gpu;
  int compute = 0, driver = 0;  // 90 = 9.0; 13000 = 13.0
  size_t library = 0;
  bool operator==(const LtFoundOn&) const = default;
};

class LtChoices {
 public:
  // <directory>/cublaslt-<hash of found_on>.json. An empty directory: nothing is read or written. A
  // file that is damaged, or of another GPU, is left alone until Save writes over it, and the log
  // says so.
  LtChoices(const std::string& directory, LtFoundOn found_on);

  std::optional<LtAlgorithm> Find(const LtShape& shape, int rows) const;
  void Add(const LtShape& shape, int rows, const LtAlgorithm& algorithm);
  // Writes a new file in the old one's place. Internal: what the system says, with the path.
  absl::Status Save() const;
  const std::string& path() const { return path_; }

 private:
  absl::Status Read(const std::string& text);

  LtFoundOn found_on_;
  std::string path_;
  std::map<std::pair<LtShape, int>, LtAlgorithm> choices_;
};

}  // namespace assay
