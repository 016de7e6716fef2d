#include "engine/lifecycle/calibrate_keys.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace assay {
namespace {

constexpr int kSinkTokens = 4;
constexpr int kChunk = 512;  // rows of one forward pass
// Of the largest scale of a layer: channels that never move, or that no query looks at, keep a part
// of the range.
constexpr float kSmallestScale = 1e-3f;
// How far nine stored channels of ten may be from those measured on another text of windows as long
// (the mean of a slow rotary channel depends on the positions). Two texts of one kind differ by 0.1
// and 1.05 on stories260K, two neighbouring layers by 3.5 and 1.3.
constexpr double kMostShift = 1.5, kMostRatio = 2;

// Sums over tokens, per channel.
struct Moments {
  std::vector<double> sum, squares, query_squares;
  int64_t tokens = 0, queries = 0;
  explicit Moments(size_t channels) : sum(channels), squares(channels), query_squares(channels) {}
};

// The keys of one sample, as the pool holds them: f32 rows.
void AddKeys(const KvPool& kv, std::span<const int32_t> blocks, int layer, int tokens,
             Moments& moments) {
  const int d = kv.layout().head_dim;
  for (int token = kSinkTokens; token < tokens; ++token) {
    const int32_t block = blocks[token / KvPool::kBlockTokens];
    for (int head = 0; head < kv.layout().kv_heads; ++head) {
      const auto* row = reinterpret_cast<const float*>(
          kv.keys(layer, block, head) + (token % KvPool::kBlockTokens) * kv.layout().row_bytes());
      for (int i = 0; i < d; ++i) {
        const double value = row[i];
        moments.sum[head * d + i] += value;
        moments.squares[head * d + i] += value * value;
      }
    }
  }
  moments.tokens += std::max(0, tokens - kSinkTokens);
}

// The queries of a fused projection's output [rows, (heads + 2 kv_heads) head_dim] before they are
// rotated: a rotation keeps the square of a pair, and over many positions shares it between the
// two.
void AddQueries(const ModelSpec& spec, TensorView y, Moments& moments) {
  const int d = spec.head_dim, half = d / 2, group = spec.heads / spec.kv_heads;
  for (int64_t row = 0; row < y.shape[0]; ++row) {
    const float* q = y.as<float>() + row * y.shape[1];
    for (int head = 0; head < spec.heads; ++head) {
      double* squares = moments.query_squares.data() + head / group * d;
      for (int i = 0; i < half; ++i) {
        const double a = q[head * d + i], b = q[head * d + half + i];
        squares[i] += (a * a + b * b) / 2;
        squares[half + i] += (a * a + b * b) / 2;
      }
    }
  }
  moments.queries += y.shape[0] * group;
}

absl::StatusOr<KeyMeasure> Finish(const Moments& moments, bool with_queries) {
  KeyMeasure measured;
  KeyParts& keys = measured.keys;
  float largest = 0;
  const auto tokens = static_cast<double>(std::max<int64_t>(1, moments.tokens));
  const auto queries = static_cast<double>(std::max<int64_t>(1, moments.queries));
  for (size_t i = 0; i < moments.sum.size(); ++i) {
    const double mean = moments.sum[i] / tokens;
    const double deviation = std::sqrt(std::max(0.0, moments.squares[i] / tokens - mean * mean));
    const double query = with_queries ? std::sqrt(moments.query_squares[i] / queries) : deviation;
    const double scale = with_queries ? std::sqrt(deviation / std::max(query, 1e-12)) : deviation;
    if (!std::isfinite(mean) || !std::isfinite(scale))
      return absl::FailedPreconditionError(absl::StrCat("a key is not finite: channel=", i));
    keys.mean.push_back(static_cast<float>(mean));
    keys.scale.push_back(static_cast<float>(scale));
    measured.deviation.push_back(static_cast<float>(deviation));
    largest = std::max(largest, keys.scale.back());
  }
  for (float& scale : keys.scale)
    scale = largest > 0 ? std::max(scale, kSmallestScale * largest) : 1.0f;
  return measured;
}

// What nine channels of ten keep to: a few may move a lot between two texts.
double NinthDecile(std::vector<double> values) {
  const auto at = values.begin() + static_cast<ptrdiff_t>(values.size() * 9 / 10);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

}  // namespace

namespace {

// Where the keys of one layer are counted.
struct LayerKeys {
  const LinearSlot* projection = nullptr;  // the layer's first linear of the right width
  Moments moments;
};

// One layer on every sample; `streams` [tokens, hidden] each go in and come out.
absl::Status MeasureLayer(const Model& model, int layer, const CalibrationRun& run,
                          std::vector<std::vector<float>>& streams, LayerKeys& keys) {
  const ModelSpec& spec = model.spec();
  int longest = 1;
  for (const TokenDocument& sample : run.set.samples)
    longest = std::max(longest, static_cast<int>(sample.size()));
  const int chunk = std::min(kChunk, longest);
  ASSIGN_OR_RETURN(
      ModelPass pass,
      ModelPass::Create(
          model, {.context = longest, .rows = chunk, .first_layer = layer, .layers = 1}, run.pool));
  const LinearObserver observer = [&](const LinearSlot& slot, TensorView, TensorView y) {
    if (&slot == keys.projection) AddQueries(spec, y, keys.moments);
  };
  const int64_t width = int64_t{spec.heads + 2 * spec.kv_heads} * spec.head_dim;
  for (const LinearSlot& slot : model.slots()) {
    if (keys.projection == nullptr && slot.layer == layer && slot.shape[0] == width)
      keys.projection = &slot;
  }
  for (size_t i = 0; i < run.set.samples.size(); ++i) {
    const TokenDocument& sample = run.set.samples[i];
    for (size_t start = 0; start < sample.size(); start += static_cast<size_t>(chunk)) {
      const size_t rows = std::min(static_cast<size_t>(chunk), sample.size() - start);
      float* at = streams[i].data() + start * static_cast<size_t>(spec.hidden);
      const LayerPart part{layer,
                           layer + 1,
                           {reinterpret_cast<std::byte*>(at),
                            {static_cast<int64_t>(rows), spec.hidden},
                            DType::kF32,
                            &CpuDevice()}};
      const ModelPass::Span span{0, static_cast<int>(start),
                                 std::span(sample).subspan(start, rows)};
      RETURN_IF_ERROR(
          pass.Forward(std::span(&span, 1), /*logits=*/false, &observer, &part).status());
    }
    AddKeys(*pass.kv(), pass.blocks(0), layer, static_cast<int>(sample.size()), keys.moments);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<KeyMeasures> MeasureKeys(const LayerSource& source, const CalibrationRun& run) {
  const ModelSpec& spec = source.spec();
  const auto channels = static_cast<size_t>(spec.kv_heads) * static_cast<size_t>(spec.head_dim);
  std::vector<std::vector<float>> streams;
  for (const TokenDocument& sample : run.set.samples)
    streams.emplace_back(sample.size() * static_cast<size_t>(spec.hidden));
  KeyMeasures found;
  for (int layer = 0; layer < spec.layers; ++layer) {
    ASSIGN_OR_RETURN(const std::shared_ptr<const Model> model, source.Layer(layer));
    LayerKeys keys{.moments = Moments(channels)};
    RETURN_IF_ERROR(MeasureLayer(*model, layer, run, streams, keys));
    if (keys.projection == nullptr) {
      return absl::UnimplementedError(
          absl::StrCat("no projection of layer ", layer, " gives queries, keys and values"));
    }
    ASSIGN_OR_RETURN(found[keys.projection->name], Finish(keys.moments, !spec.qk_norm));
    if (run.progress) RETURN_IF_ERROR(run.progress(static_cast<double>(layer + 1) / spec.layers));
  }
  return found;
}

absl::StatusOr<std::map<std::string, KeyParts, std::less<>>> CalibrateKeys(
    const LayerSource& source, const CalibrationRun& run) {
  ASSIGN_OR_RETURN(KeyMeasures measured, MeasureKeys(source, run));
  std::map<std::string, KeyParts, std::less<>> keys;
  for (auto& [slot, one] : measured) keys[slot] = std::move(one.keys);
  return keys;
}

std::map<std::string, std::string> FindForeignKeys(const KeyMeasures& reference,
                                                   const LinearMap& served) {
  std::map<std::string, std::string> defects;
  for (const auto& [slot, expected] : reference) {
    const auto linear = served.find(slot);
    const KeyParts* keys = linear == served.end() ? nullptr : linear->second->keys();
    if (keys == nullptr || keys->scale.size() != expected.deviation.size()) continue;
    std::vector<double> shift, ratio;
    for (size_t i = 0; i < keys->scale.size(); ++i) {
      const double deviation = std::max(expected.deviation[i], 1e-12f);
      shift.push_back(std::fabs(keys->mean[i] - expected.keys.mean[i]) / deviation);
      ratio.push_back(std::fabs(std::log2(keys->scale[i] / expected.keys.scale[i])));
    }
    const double far = NinthDecile(shift), wide = std::exp2(NinthDecile(ratio));
    if (far <= kMostShift && wide <= kMostRatio) continue;
    defects[slot] = absl::StrFormat(
        "the channels of its keys are not those of this layer: a tenth of the means are off by "
        "%.2f deviations (at most %.2g), of the scales by a factor of %.2f (at most %.2g)",
        far, kMostShift, wide, kMostRatio);
  }
  return defects;
}

}  // namespace assay
