// A real checkpoint with changes: another config, tensors hidden, or of another shape.
#pragma once
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/checkpoint.h"

namespace assay {

class EditedCheckpoint final : public Checkpoint {
 public:
  explicit EditedCheckpoint(std::unique_ptr<const Checkpoint> real)
      : edited(real->config()), real_(std::move(real)) {}

  nlohmann::json edited;                      // config()
  std::set<std::string, std::less<>> hidden;  // NotFound
  std::map<std::string, CheckpointTensor, std::less<>> reshaped;

  void Reshape(const std::string& name, Shape shape) {
    reshaped[name] = **real_->Find(name);
    reshaped[name].shape = shape;
  }

  std::string_view format() const override { return real_->format(); }
  std::span<const CheckpointTensor> tensors() const override { return real_->tensors(); }
  absl::StatusOr<const CheckpointTensor*> Find(std::string_view name) const override {
    if (hidden.contains(name)) {
      return absl::NotFoundError(absl::StrCat("no such tensor: ", std::string(name)));
    }
    if (const auto found = reshaped.find(name); found != reshaped.end()) return &found->second;
    return real_->Find(name);
  }
  absl::Status ReadRows(std::string_view name, int64_t row, int64_t rows,
                        std::span<float> out) const override {
    return real_->ReadRows(name, row, rows, out);
  }
  void DropResident(std::string_view name) const override { real_->DropResident(name); }
  const nlohmann::json& config() const override { return edited; }
  const nlohmann::json& tokenizer() const override { return real_->tokenizer(); }
  absl::StatusOr<std::string> ContentHash() const override { return real_->ContentHash(); }
  uint64_t file_bytes() const override { return real_->file_bytes(); }

 private:
  std::unique_ptr<const Checkpoint> real_;
};

}  // namespace assay
