#include "tests/engine/model/families/model_runner.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "tests/support/golden.h"

namespace assay {

ModelRunner::ModelRunner(const Model& model, int sequences, int positions, const KvFormat& kv)
    : model_(model), blocks_(sequences) {
  if (model.spec().task != ModelTask::kGenerate) return;
  const int per_sequence = (positions + KvPool::kBlockTokens - 1) / KvPool::kBlockTokens;
  const KvPool::Layout layout = model.kv_layout(kv);
  kv_ = std::make_unique<KvPool>(
      *KvPool::Create(CpuDevice(), layout, sequences * per_sequence, sequences));
  // NaN until written
  std::fill_n(kv_->keys(0, 0, 0), kv_->num_blocks() * layout.block_bytes(), std::byte{0xff});
  if (layout.has_slots())
    std::fill_n(kv_->slot_keys(0, 0, 0), sequences * layout.slot_bytes() / 2, uint16_t{0xffff});
  std::vector<int32_t> order(sequences * per_sequence);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), std::mt19937(7));
  for (int s = 0; s < sequences; ++s) {
    blocks_[s].assign(order.begin() + s * per_sequence, order.begin() + (s + 1) * per_sequence);
  }
}

absl::StatusOr<std::vector<std::vector<float>>> ModelRunner::TryForward(
    const std::vector<Chunk>& chunks) {
  std::vector<int32_t> tokens, types, logit_rows;
  std::vector<SequenceSpan> spans;
  int64_t positions = 0;
  for (const Chunk& c : chunks) {
    const auto rows = static_cast<int32_t>(c.tokens.size());
    spans.push_back({.first_row = static_cast<int32_t>(tokens.size()),
                     .num_rows = rows,
                     .start_position = c.start,
                     .blocks = blocks_[c.sequence],
                     .slot = c.sequence});
    tokens.insert(tokens.end(), c.tokens.begin(), c.tokens.end());
    types.insert(types.end(), c.token_types.begin(), c.token_types.end());
    for (int32_t r = c.all_logits ? 0 : rows - 1; r < rows; ++r) {
      logit_rows.push_back(spans.back().first_row + r);
    }
    positions += c.start + rows;
  }
  const bool decoder = kv_ != nullptr;
  if (!decoder) logit_rows.clear();
  const size_t out_rows = decoder ? logit_rows.size() : spans.size();
  const ModelSpec& spec = model_.spec();
  const int64_t width = decoder                             ? spec.vocab
                        : spec.task == ModelTask::kClassify ? spec.num_labels
                                                            : spec.hidden;
  std::vector<float> out(out_rows * width, std::numeric_limits<float>::quiet_NaN());
  const ForwardBatch batch{
      .tokens = tokens, .sequences = spans, .logit_rows = logit_rows, .token_types = types};
  const auto rows = static_cast<int64_t>(tokens.size());
  ASSIGN_OR_RETURN(
      Arena arena,
      Arena::Create(CpuDevice(),
                    model_.scratch_bytes(rows, static_cast<int64_t>(out_rows), positions)));
  ComputeContext context{pool_, arena};
  const MutableView view{reinterpret_cast<std::byte*>(out.data()),
                         Shape{static_cast<int64_t>(out_rows), width}, DType::kF32, &CpuDevice()};
  RETURN_IF_ERROR(model_.Forward(
      {.batch = batch, .kv = kv_.get(), .out = view, .observer = observer}, context));
  std::vector<std::vector<float>> result;
  for (size_t i = 0; i < out_rows; ++i) {
    result.emplace_back(out.begin() + i * width, out.begin() + (i + 1) * width);
  }
  return result;
}

std::vector<std::vector<float>> ModelRunner::Forward(const std::vector<Chunk>& chunks) {
  auto result = TryForward(chunks);
  if (result.ok()) return *std::move(result);
  ADD_FAILURE() << result.status();
  return std::vector<std::vector<float>>(chunks.size());
}

std::string RepositoryPath(const std::string& relative) { return GoldenPath("../../" + relative); }

double MaxDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double worst = a.size() == b.size() ? 0 : std::numeric_limits<double>::infinity();
  for (size_t i = 0; i < a.size() && i < b.size(); ++i) {
    const double difference = std::abs(double{a[i]} - b[i]);
    worst = std::isnan(difference) ? std::numeric_limits<double>::infinity()
                                   : std::max(worst, difference);
  }
  return worst;
}

}  // namespace assay
