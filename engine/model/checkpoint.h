// A full-precision checkpoint on disk, whatever its container: names -> tensors over memory-mapped
// files, plus what the container says about the model (hyperparameters, tokenizer).
//
// Names are canonical: those of Hugging Face `transformers`
// ("model.layers.0.self_attn.q_proj.weight"). A GGUF reader renames, reverses the dimension order
// to row-major [out, in] and undoes the converter's row permutation of q and k, so nothing above
// this header knows which container it reads.
//
// Sources: GGUF, github.com/ggml-org/ggml docs/gguf.md and ggml-common.h; safetensors, its README;
// the directory layout and index, `transformers`. The files must not shrink while they are open.
//
// Thread rule: immutable once open; all methods are const and thread-safe.
#pragma once
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/tensor.h"

namespace assay {

struct CheckpointTensor {
  std::string name;      // canonical
  Shape shape;           // row-major
  std::string encoding;  // as stored: "f32", "bf16", "q4_1", ...
  uint64_t stored_bytes = 0;
};

class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  virtual std::string_view format() const = 0;                    // "gguf" or "safetensors"
  virtual std::span<const CheckpointTensor> tensors() const = 0;  // sorted by name
  // NotFound with the name.
  virtual absl::StatusOr<const CheckpointTensor*> Find(std::string_view name) const = 0;
  // Dequantizes rows [row, row + rows) of a tensor seen as a matrix [shape[0], elements / shape[0]]
  // into `out` (f32, row-major). NotFound; InvalidArgument when the rows or out.size() do not fit;
  // Unimplemented for an encoding that this reader lacks.
  virtual absl::Status ReadRows(std::string_view name, int64_t row, int64_t rows,
                                std::span<float> out) const = 0;
  // Lets go of the resident pages of one tensor (quantization streams).
  virtual void DropResident(std::string_view name) const = 0;
  // Hyperparameters in the vocabulary of Hugging Face's config.json, whatever the container
  // ("model_type", "hidden_size", "num_hidden_layers", "rope_theta", ...); {} where there are none.
  // "generation_config": generation_config.json. "sentence_transformers": {"modules":
  // ["Transformer", "Pooling", "Normalize"], "pooling": <1_Pooling/config.json>, "normalize": bool,
  // "max_seq_length": n}, as far as the directory has them.
  virtual const nlohmann::json& config() const = 0;
  // The argument of MakeTokenizer (engine/model/tokenizer.h). Without a tokenizer.json its
  // "tokenizer" is null.
  virtual const nlohmann::json& tokenizer() const = 0;
  // SHA-256, 64 hex digits, over all files that were read: of the file's bytes where there is one,
  // else of the listing that `sha256sum` prints for them in order of name. Computed on first use
  // (reads everything once), then cached.
  virtual absl::StatusOr<std::string> ContentHash() const = 0;
  virtual uint64_t file_bytes() const = 0;  // of all those files
  // DataLoss where one of those files was changed after it was opened: what was read since may be
  // anything. (A file that was replaced by another or deleted is still there for us.)
  virtual absl::Status Unchanged() const { return absl::OkStatus(); }

  // The whole tensor as a host tensor f32. Codes of ReadRows; ResourceExhausted.
  absl::StatusOr<Tensor> ReadAll(std::string_view name) const;
};

// `path` is a .gguf file, a .safetensors file, or a directory that holds either (model.safetensors,
// or model.safetensors.index.json with its shards, next to config.json and tokenizer.json; or
// exactly one .gguf). NotFound: no such path or nothing recognised in it (says what was looked
// for). DataLoss: bytes that contradict themselves (truncation, overlap, out-of-range offset).
// InvalidArgument: well-formed but unusable (duplicate name, non-UTF-8 name, absurd size). All
// messages name the file and the tensor or key at fault.
absl::StatusOr<std::unique_ptr<const Checkpoint>> OpenCheckpoint(const std::string& path);

}  // namespace assay
