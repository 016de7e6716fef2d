#include "engine/model/rotation.h"

#include <algorithm>
#include <map>

#include "absl/strings/str_cat.h"
#include "base/sha256.h"
#include "quant/methods/hadamard.h"

namespace assay {
namespace {

// What happens to one tensor.
struct Change {
  bool ones = false;                         // a norm whose gain moved on
  const std::vector<float>* gain = nullptr;  // of its columns
  bool reads_stream = false;                 // rows times Q
  bool reads_heads = false;                  // rows times H, head by head
  bool writes_stream = false;                // Q^T times the matrix
  bool writes_heads = false;                 // H^T times it, head by head
};

class RotatedCheckpoint final : public Checkpoint {
 public:
  RotatedCheckpoint(const Checkpoint& base, HadamardRotation stream, HadamardRotation head)
      : base_(base), stream_(std::move(stream)), head_(std::move(head)) {}

  absl::Status Plan(const ModelFamily& family, const ModelSpec& spec);

  std::string_view format() const override { return base_.format(); }
  std::span<const CheckpointTensor> tensors() const override { return base_.tensors(); }
  absl::StatusOr<const CheckpointTensor*> Find(std::string_view name) const override {
    if (tied_ && name == kStreamRotation) return &signs_;
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
  absl::StatusOr<const std::vector<float>*> TakeGain(const std::string& norm);
  absl::Status PlanReaders(const FoldGroup& group);
  absl::Status CheckAllAreRotated(const ModelFamily& family, const ModelSpec& spec) const;
  void Apply(const Change& change, int64_t rows, std::span<float> values) const;

  const Checkpoint& base_;
  const HadamardRotation stream_, head_;
  bool tied_ = false;
  CheckpointTensor signs_;
  std::map<std::string, std::vector<float>, std::less<>> gains_;  // by norm
  std::map<std::string, Change, std::less<>> changes_;
};

absl::StatusOr<const std::vector<float>*> RotatedCheckpoint::TakeGain(const std::string& norm) {
  ASSIGN_OR_RETURN(const Tensor gain, base_.ReadAll(norm));
  const auto* values = gain.data<float>();
  std::vector<float>& kept = gains_[norm];
  kept.assign(values, values + gain.shape().elements());
  changes_[norm].ones = true;
  return &kept;
}

absl::Status RotatedCheckpoint::PlanReaders(const FoldGroup& group) {
  if (group.producers.size() != 1) {
    return absl::UnimplementedError(
        absl::StrCat("a norm with a bias does not commute with a rotation: slot=", group.slot));
  }
  ASSIGN_OR_RETURN(const std::vector<float>* gain, TakeGain(group.producers.front()));
  for (const std::string& weight : group.consumers) {
    changes_[weight].gain = gain;
    changes_[weight].reads_stream = true;
  }
  return absl::OkStatus();
}

absl::Status RotatedCheckpoint::Plan(const ModelFamily& family, const ModelSpec& spec) {
  tied_ = spec.tied_head;
  signs_ = {kStreamRotation, Shape{spec.hidden}, "f32", 0};
  const std::vector<LinearSlot> slots = family.slots(spec);
  for (const FoldGroup& group : family.folds(spec)) {
    if (group.kind == FoldGroup::Kind::kNormLinear) RETURN_IF_ERROR(PlanReaders(group));
    const bool values = group.kind == FoldGroup::Kind::kValueOutput;
    if (!values && group.kind != FoldGroup::Kind::kUpDown) continue;
    for (const std::string& producer : group.producers) changes_[producer].writes_heads = values;
    for (const std::string& weight : group.consumers) {
      changes_[weight].writes_stream = true;
      changes_[weight].reads_heads = values;
    }
    for (const LinearSlot& slot : slots) {
      if (slot.name != group.slot) continue;
      for (const std::string& bias : slot.biases)
        if (!bias.empty()) changes_[bias].writes_stream = true;
    }
  }
  for (const LinearSlot& slot : slots) {
    if (slot.kind == LinearSlot::Kind::kEmbedding && !tied_)
      changes_[slot.weights.front()].reads_stream = true;
  }
  return CheckAllAreRotated(family, spec);
}

// A linear of the stack that neither reads nor writes the stream would make the rest wrong.
absl::Status RotatedCheckpoint::CheckAllAreRotated(const ModelFamily& family,
                                                   const ModelSpec& spec) const {
  for (const LinearSlot& slot : family.slots(spec)) {
    if (slot.kind == LinearSlot::Kind::kEmbedding && tied_) continue;
    for (const std::string& weight : slot.weights) {
      const auto change = changes_.find(weight);
      if (change != changes_.end() && (change->second.reads_stream || change->second.writes_stream))
        continue;
      return absl::UnimplementedError(
          absl::StrCat("the residual stream of this model cannot be rotated: no RMS norm feeds ",
                       weight, ", architecture=", spec.architecture));
    }
  }
  return absl::OkStatus();
}

void RotatedCheckpoint::Apply(const Change& change, int64_t rows, std::span<float> values) const {
  const auto columns = static_cast<int64_t>(values.size()) / rows;
  for (int64_t r = 0; change.gain != nullptr && r < rows; ++r) {
    for (int64_t i = 0; i < columns; ++i) values[r * columns + i] *= (*change.gain)[i];
  }
  if (change.reads_stream) stream_.RotateRows(values);
  if (change.reads_heads) head_.RotateRows(values);
  if (change.writes_stream) stream_.RotateOutput(values, columns);
  for (int64_t r = 0; change.writes_heads && r < rows; r += head_.n())
    head_.RotateOutput(values.subspan(r * columns, head_.n() * columns), columns);
}

absl::Status RotatedCheckpoint::ReadRows(std::string_view name, int64_t row, int64_t rows,
                                         std::span<float> out) const {
  if (tied_ && name == kStreamRotation) {
    if (row < 0 || rows < 0 || row + rows > stream_.n() ||
        static_cast<int64_t>(out.size()) != rows) {
      return absl::InvalidArgumentError(
          absl::StrCat("rows outside of ", kStreamRotation, ": row=", row, " rows=", rows));
    }
    std::copy_n(stream_.signs().begin() + row, rows, out.begin());
    return absl::OkStatus();
  }
  const auto found = changes_.find(name);
  if (found == changes_.end() || rows <= 0) return base_.ReadRows(name, row, rows, out);
  const Change& change = found->second;
  // What is mixed must be there as a whole.
  const int64_t unit = change.writes_stream ? stream_.n() : change.writes_heads ? head_.n() : 1;
  const int64_t begin = row / unit * unit, end = (row + rows + unit - 1) / unit * unit;
  if (begin == row && end == row + rows) {
    RETURN_IF_ERROR(base_.ReadRows(name, row, rows, out));
    if (change.ones) std::fill(out.begin(), out.end(), 1.0f);
    Apply(change, rows, out);
    return absl::OkStatus();
  }
  const size_t columns = out.size() / static_cast<size_t>(rows);
  std::vector<float> all(static_cast<size_t>(end - begin) * columns);
  RETURN_IF_ERROR(base_.ReadRows(name, begin, end - begin, all));
  Apply(change, end - begin, all);
  std::copy_n(all.begin() + static_cast<ptrdiff_t>(static_cast<size_t>(row - begin) * columns),
              out.size(), out.begin());
  return absl::OkStatus();
}

absl::StatusOr<std::string> RotatedCheckpoint::ContentHash() const {
  ASSIGN_OR_RETURN(const std::string base, base_.ContentHash());
  Sha256 hash;
  hash.Update(std::as_bytes(std::span(base.data(), base.size())));
  hash.Update(std::as_bytes(stream_.signs()));
  return hash.HexDigest();
}

}  // namespace

absl::StatusOr<std::unique_ptr<const Checkpoint>> RotateStream(const Checkpoint& base,
                                                               const ModelFamily& family,
                                                               const ModelSpec& spec,
                                                               std::span<const int8_t> signs) {
  ASSIGN_OR_RETURN(HadamardRotation stream, HadamardRotation::Create(spec.hidden, signs));
  ASSIGN_OR_RETURN(HadamardRotation head, HadamardRotation::Create(spec.head_dim));
  auto rotated = std::make_unique<RotatedCheckpoint>(base, std::move(stream), std::move(head));
  RETURN_IF_ERROR(rotated->Plan(family, spec));
  return std::unique_ptr<const Checkpoint>(std::move(rotated));
}

}  // namespace assay
