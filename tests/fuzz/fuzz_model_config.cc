// A checkpoint's hyperparameters, in the words of config.json, and the shapes of its tensors:
// {"config": {...}, "tensors": {"name": [dims]}}. A Status of the documented codes, or a model
// whose parts have sizes that fit its spec.
#include <nlohmann/json.hpp>

#include "engine/model/checkpoint_text.h"
#include "engine/model/fold.h"
#include "engine/model/model.h"
#include "tests/fuzz/require.h"

namespace assay {
namespace {

using nlohmann::json;

// Says what tensors there are, and has no bytes of them.
class Described final : public Checkpoint {
 public:
  explicit Described(const json& all) : config_(all.value("config", json::object())) {
    const json shapes = all.value("tensors", json::object());
    for (const auto& [name, dims] : shapes.items()) {
      CheckpointTensor tensor{.name = name, .shape = {}, .encoding = "f32", .stored_bytes = 0};
      for (const json& dim : dims) {
        if (!dim.is_number_unsigned() || dim.get<uint64_t>() > 1 << 20 || tensor.shape.rank == 4)
          break;
        tensor.shape.dim[static_cast<size_t>(tensor.shape.rank++)] = dim.get<int64_t>();
      }
      tensors_.push_back(std::move(tensor));
    }
  }

  std::string_view format() const override { return "safetensors"; }
  std::span<const CheckpointTensor> tensors() const override { return tensors_; }
  absl::StatusOr<const CheckpointTensor*> Find(std::string_view name) const override {
    for (const CheckpointTensor& tensor : tensors_)
      if (tensor.name == name) return &tensor;
    return absl::NotFoundError("no such tensor");
  }
  absl::Status ReadRows(std::string_view, int64_t, int64_t, std::span<float> out) const override {
    std::fill(out.begin(), out.end(), 1.0f);
    return absl::OkStatus();
  }
  void DropResident(std::string_view) const override {}
  const json& config() const override { return config_; }
  const json& tokenizer() const override { return tokenizer_; }
  absl::StatusOr<std::string> ContentHash() const override { return std::string(64, '0'); }
  uint64_t file_bytes() const override { return 0; }

 private:
  const json config_, tokenizer_ = json::object();
  std::vector<CheckpointTensor> tensors_;
};

void Exercise(const Checkpoint& checkpoint) {
  const auto family = FamilyOf(checkpoint);
  RequireCode(family.status(), absl::StatusCode::kUnimplemented);
  if (!family.ok()) return;
  const auto spec = (*family)->parse(checkpoint);
  RequireCode(spec.status(), absl::StatusCode::kInvalidArgument, absl::StatusCode::kUnimplemented,
              absl::StatusCode::kNotFound);
  if (!spec.ok()) return;
  Require(spec->layers > 0 && spec->hidden > 0 && spec->heads > 0, "sizes");
  Require(spec->vocab > 0 && spec->max_context > 0, "sizes");
  for (const LinearSlot& slot : (*family)->slots(*spec)) {
    Require(slot.shape.rank == 2 && slot.shape[0] > 0 && slot.shape[1] > 0, "a slot's shape");
    Require(slot.shape[0] < int64_t{1} << 40 && slot.shape[1] < int64_t{1} << 40, "a slot's shape");
  }
  (void)(*family)->folds(*spec);
}

}  // namespace
}  // namespace assay

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto all = assay::ParseBoundedJson(assay::TextOf(data, size), "fuzz.json");
  if (all.ok() && all->is_object() && all->value("config", nlohmann::json()).is_object() &&
      all->value("tensors", nlohmann::json::object()).is_object())
    assay::Exercise(assay::Described(*all));
  return 0;
}
