#include "engine/model/gguf.h"

#include <algorithm>
#include <charconv>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "engine/model/checkpoint_text.h"
#include "engine/model/gguf_config.h"
#include "engine/model/gguf_header.h"
#include "engine/model/gguf_names.h"

namespace assay {
namespace {

using nlohmann::json;

// Heads of one layer; a per-layer list is allowed. 0 when the config does not say.
int64_t HeadsOfLayer(const json& config, std::string_view key, std::string_view gguf_name) {
  const auto found = config.find(key);
  if (found == config.end()) return 0;
  if (!found->is_array()) return found->get<int64_t>();
  size_t layer = 0;
  const std::string_view number = gguf_name.substr(std::string_view("blk.").size());
  std::from_chars(number.data(), number.data() + number.size(), layer);
  return layer < found->size() ? (*found)[layer].get<int64_t>() : 0;
}

absl::Status SetPermutation(const json& config, std::string_view gguf_name, StoredTensor& tensor) {
  const RowPermutation permutation =
      FindRowPermutation(config["model_type"].get_ref<const std::string&>(), gguf_name);
  if (permutation == RowPermutation::kNone) return absl::OkStatus();
  const std::string key =
      permutation == RowPermutation::kQueryHeads ? "num_attention_heads" : "num_key_value_heads";
  const int64_t heads = HeadsOfLayer(config, key, gguf_name), rows = tensor.info.shape[0];
  if (heads <= 0 || heads > rows || rows % (2 * heads) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "tensor ", Quoted(gguf_name), " has rows that are not an even number per head: rows=", rows,
        " ", key, "=", heads));
  }
  tensor.interleaved_heads = heads;
  return absl::OkStatus();
}

absl::StatusOr<StoredTensor> Convert(const GgufHeader& header, const json& config,
                                     const GgufTensor& in) {
  StoredTensor tensor;
  tensor.format = FindGgmlFormat(in.type);
  if (tensor.format == nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", Quoted(in.name), " has an unknown type: ggml_type=", in.type));
  }
  tensor.info.name = in.name;  // for the errors of SetShape
  const std::vector<uint64_t> row_major(in.dims.rbegin(), in.dims.rend());
  RETURN_IF_ERROR(SetShape(row_major, tensor));
  RETURN_IF_ERROR(SetPermutation(config, in.name, tensor));
  tensor.info.name =
      CanonicalTensorName(config["model_type"].get_ref<const std::string&>(), in.name);
  if (in.offset % header.alignment != 0 || in.offset > UINT64_MAX - header.data_begin) {
    return absl::DataLossError(absl::StrCat("tensor ", Quoted(in.name), " is not aligned: offset=",
                                            in.offset, " alignment=", header.alignment));
  }
  tensor.offset = header.data_begin + in.offset;
  return tensor;
}

absl::Status RefuseSplit(const json& metadata) {
  const auto count = metadata.find("split.count");
  if (count == metadata.end() || (count->is_number_integer() && count->get<int64_t>() <= 1))
    return absl::OkStatus();
  return absl::InvalidArgumentError(
      "this is one part of a split GGUF: merge the parts first (llama-gguf-split --merge)");
}

}  // namespace

absl::StatusOr<CheckpointContents> ParseGguf(std::span<const std::byte> file) {
  ASSIGN_OR_RETURN(GgufHeader header, ParseGgufHeader(file));
  RETURN_IF_ERROR(RefuseSplit(header.metadata));
  CheckpointContents contents;
  ASSIGN_OR_RETURN(contents.config, GgufConfig(header));
  contents.tensors.reserve(header.tensors.size());
  for (const GgufTensor& tensor : header.tensors) {
    ASSIGN_OR_RETURN(contents.tensors.emplace_back(), Convert(header, contents.config, tensor));
  }
  RETURN_IF_ERROR(SortByName(contents.tensors));
  RETURN_IF_ERROR(CheckRanges(contents.tensors, header.data_begin, file.size()));
  json metadata = json::object();
  for (auto& [key, value] : header.metadata.items()) {
    if (absl::StartsWith(key, "tokenizer.")) metadata[key] = std::move(value);
  }
  contents.tokenizer = {{"format", "gguf"}, {"metadata", std::move(metadata)}};
  return contents;
}

}  // namespace assay
