#include "engine/model/fold.h"

#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/sha256.h"

namespace assay {
namespace {

// Factors of one tensor, multiplied over all folds; empty = 1.
struct Factors {
  std::vector<float> row, column;
};

void Multiply(std::vector<float>& factors, size_t size, auto&& factor) {
  if (factors.empty()) factors.assign(size, 1.0f);
  for (size_t i = 0; i < size; ++i) factors[i] *= factor(static_cast<int64_t>(i));
}

class FoldedCheckpoint final : public Checkpoint {
 public:
  explicit FoldedCheckpoint(const Checkpoint& base) : base_(base) {}

  absl::Status Add(const Fold& fold);

  std::string_view format() const override { return base_.format(); }
  std::span<const CheckpointTensor> tensors() const override { return base_.tensors(); }
  absl::StatusOr<const CheckpointTensor*> Find(std::string_view name) const override {
    return base_.Find(name);
  }
  absl::Status ReadRows(std::string_view name, int64_t row, int64_t rows,
                        std::span<float> out) const override;
  void DropResident(std::string_view name) const override { base_.DropResident(name); }
  const nlohmann::json& config() const override { return base_.config(); }
  const nlohmann::json& tokenizer() const override { return base_.tokenizer(); }
  absl::StatusOr<std::string> ContentHash() const override;
  uint64_t file_bytes() const override { return base_.file_bytes(); }
  absl::Status Unchanged() const override { return base_.Unchanged(); }

 private:
  const Checkpoint& base_;
  std::map<std::string, Factors, std::less<>> factors_;
};

absl::Status FoldedCheckpoint::Add(const Fold& fold) {
  const FoldGroup& group = fold.group;
  if (static_cast<int64_t>(fold.scales.size()) != group.channels) {
    return absl::InvalidArgumentError(absl::StrCat(
        "fold of ", group.slot, " needs ", group.channels, " scales: scales=", fold.scales.size()));
  }
  for (size_t i = 0; i < fold.scales.size(); ++i) {
    if (std::isnormal(fold.scales[i]) && fold.scales[i] > 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "fold of ", group.slot, " needs positive scales: channel=", i, " scale=", fold.scales[i]));
  }
  const int64_t half = group.head_dim / 2;
  for (int64_t i = 0; group.rotary_pairs && i < group.channels; ++i) {
    if (i % group.head_dim >= half || fold.scales[i] == fold.scales[i + half]) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "fold of ", group.slot, " needs equal scales within a rotary pair: channel=", i,
        " scale=", fold.scales[i], " partner=", fold.scales[i + half]));
  }
  for (const std::string& name : group.partners) {
    ASSIGN_OR_RETURN(const CheckpointTensor* tensor, base_.Find(name));
    if (tensor->shape.rank == 0 || tensor->shape[0] != group.columns()) {
      return absl::InvalidArgumentError(absl::StrCat("fold of ", group.slot, ": ", name, " is ",
                                                     ToString(tensor->shape), ", expected ",
                                                     group.columns(), " rows"));
    }
    Multiply(factors_[name].row, static_cast<size_t>(group.columns()),
             [&](int64_t j) { return fold.scales[group.ChannelOf(j)]; });
  }
  for (const std::string& name : group.producers) {
    ASSIGN_OR_RETURN(const CheckpointTensor* tensor, base_.Find(name));
    if (tensor->shape.rank == 0 || tensor->shape[0] != group.channels) {
      return absl::InvalidArgumentError(absl::StrCat("fold of ", group.slot, ": ", name, " is ",
                                                     ToString(tensor->shape), ", expected ",
                                                     group.channels, " rows"));
    }
    Multiply(factors_[name].row, fold.scales.size(),
             [&](int64_t i) { return 1.0f / fold.scales[i]; });
  }
  for (const std::string& name : group.consumers) {
    ASSIGN_OR_RETURN(const CheckpointTensor* tensor, base_.Find(name));
    if (tensor->shape.rank != 2 || tensor->shape[1] != group.columns()) {
      return absl::InvalidArgumentError(absl::StrCat("fold of ", group.slot, ": ", name, " is ",
                                                     ToString(tensor->shape), ", expected ",
                                                     group.columns(), " columns"));
    }
    Multiply(factors_[name].column, static_cast<size_t>(group.columns()),
             [&](int64_t j) { return fold.scales[group.ChannelOf(j)]; });
  }
  return absl::OkStatus();
}

absl::Status FoldedCheckpoint::ReadRows(std::string_view name, int64_t row, int64_t rows,
                                        std::span<float> out) const {
  RETURN_IF_ERROR(base_.ReadRows(name, row, rows, out));
  const auto found = factors_.find(name);
  if (found == factors_.end() || rows == 0) return absl::OkStatus();
  const Factors& factors = found->second;
  const size_t columns = out.size() / static_cast<size_t>(rows);
  for (int64_t r = 0; r < rows; ++r) {
    float* to = out.data() + static_cast<size_t>(r) * columns;
    const float by_row = factors.row.empty() ? 1.0f : factors.row[row + r];
    if (factors.column.empty()) {
      for (size_t i = 0; i < columns; ++i) to[i] *= by_row;
    } else {
      for (size_t i = 0; i < columns; ++i) to[i] *= by_row * factors.column[i];
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::string> FoldedCheckpoint::ContentHash() const {
  ASSIGN_OR_RETURN(const std::string base, base_.ContentHash());
  Sha256 hash;
  const auto update = [&](std::string_view text) {
    hash.Update(std::as_bytes(std::span(text.data(), text.size())));
  };
  update(base);
  for (const auto& [name, factors] : factors_) {
    update(absl::StrCat("\n", name, "\n"));
    hash.Update(std::as_bytes(std::span(factors.row)));
    update("|");
    hash.Update(std::as_bytes(std::span(factors.column)));
  }
  return hash.HexDigest();
}

}  // namespace

std::string_view Name(FoldGroup::Kind kind) {
  switch (kind) {
    case FoldGroup::Kind::kNormLinear:
      return "norm_linear";
    case FoldGroup::Kind::kValueOutput:
      return "value_output";
    case FoldGroup::Kind::kUpDown:
      return "up_down";
    case FoldGroup::Kind::kKeyQuery:
      return "key_query";
  }
  return "unknown";
}

absl::StatusOr<std::unique_ptr<const Checkpoint>> ApplyFolds(const Checkpoint& base,
                                                             const std::vector<Fold>& folds) {
  auto folded = std::make_unique<FoldedCheckpoint>(base);
  for (const Fold& fold : folds) RETURN_IF_ERROR(folded->Add(fold));
  return std::unique_ptr<const Checkpoint>(std::move(folded));
}

}  // namespace assay
