// safetensors: one file, and a Hugging Face directory of them with its JSON files.
// Format: github.com/huggingface/safetensors README ("Format"); index: transformers'
// model.safetensors.index.json.
//
// Thread rule: pure functions; ReadHuggingFaceFiles reads files.
#pragma once
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/mapped_file.h"
#include "base/status.h"
#include "engine/model/checkpoint_layout.h"

namespace assay {

// The tensors of one file. DataLoss: truncated, malformed header, offsets that overlap, leave gaps
// or contradict the shape. InvalidArgument: duplicate or non-UTF-8 name, unknown dtype, absurd
// size, header over 100 MB.
absl::StatusOr<std::vector<StoredTensor>> ParseSafetensors(std::span<const std::byte> file);

struct HuggingFaceFiles {
  std::vector<std::shared_ptr<const MappedFile>>
      files;  // the weights first (StoredTensor::file), then what else was read
  CheckpointContents contents;
};

// `weights` is a .safetensors file or a model.safetensors.index.json; the JSON files are read from
// the same directory, each if it exists. Errors name the file.
absl::StatusOr<HuggingFaceFiles> ReadHuggingFaceFiles(const std::string& weights);

}  // namespace assay
