// The container GGUF, versions 2 and 3: header, metadata and tensor table, as written
// (github.com/ggml-org/ggml docs/gguf.md). What the names mean is in gguf.h.
//
// Thread rule: pure function.
#pragma once
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "base/status.h"

namespace assay {

struct GgufTensor {
  std::string name;
  std::vector<uint64_t> dims;  // fastest first, as written
  uint32_t type = 0;           // ggml_type
  uint64_t offset = 0;         // from data_begin
};

struct GgufHeader {
  uint32_t version = 0;
  uint64_t alignment = 32;
  uint64_t data_begin = 0;  // from the start of the file, aligned
  // Every key and value; arrays are JSON arrays (also those of bytes), f32 is widened exactly.
  nlohmann::json metadata = nlohmann::json::object();
  std::vector<GgufTensor> tensors;
};

// DataLoss: the file ends early. InvalidArgument: a version, type, count, alignment or name that
// cannot be used.
absl::StatusOr<GgufHeader> ParseGgufHeader(std::span<const std::byte> file);

}  // namespace assay
