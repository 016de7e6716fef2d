#include "engine/lifecycle/shadow_evaluator.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "base/thread_pool.h"
#include "engine/model/file_model.h"
#include "quant/accuracy.h"

namespace assay {
namespace {

constexpr int kChunkRows = 128;  // of one pass
// On a GPU, which multiplies more rows in another way: most of what was served came of few.
constexpr int kChunkRowsOnGpu = 64;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Position p predicts token p + 1; the last token's prediction is not known to be right or wrong.
struct Window {
  int begin = 0, end = 0;  // positions
};

// splitmix64 (Steele, Lea, Flood 2014): seeds that count up give places without order.
uint64_t Spread(uint64_t seed) {
  uint64_t z = (seed + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

// The answer, or a part of it as long as allowed; what room is left goes to the prompt's end.
Window WindowOf(const ServedRequest& request, const ShadowEvaluator::Options& options,
                int chunk_rows) {
  const int last = static_cast<int>(request.tokens.size()) - 1;
  const int most = std::clamp(options.max_positions, 1, chunk_rows);
  const int first_answer = std::max(0, request.num_prompt - 1);
  if (last - first_answer <= most) return {std::max(0, last - most), last};
  const auto places = static_cast<uint64_t>(last - first_answer - most) + 1;
  const int begin = first_answer + static_cast<int>(Spread(options.seed) % places);
  return {begin, begin + most};
}

// Logits of a window's positions, after everything before it.
class WindowPass {
 public:
  struct Work {
    const ServedRequest& request;
    const Window& window;
    ThreadPool& pool;
    const ShadowEvaluator::Pause& pause;
    int chunk_rows;
  };
  // `inputs` may be null.
  static absl::StatusOr<WindowPass> Run(const Model& model, const KvFormat& kv_format,
                                        const Work& work, InputProfile* inputs) {
    const ServedRequest& request = work.request;
    const Window& window = work.window;
    const int rows = std::min(work.chunk_rows, window.end);
    ASSIGN_OR_RETURN(ModelPass pass, ModelPass::Create(model,
                                                       {.sequences = 1,
                                                        .context = window.end,
                                                        .rows = rows,
                                                        .out_rows = window.end - window.begin,
                                                        .kv_format = kv_format},
                                                       work.pool));
    WindowPass result(std::move(pass));
    const LinearObserver observer = inputs == nullptr ? LinearObserver() : inputs->observer();
    const LinearObserver* seen = inputs == nullptr ? nullptr : &observer;
    const auto span = [&](int start, int end) {
      if (inputs != nullptr) inputs->set_first_decode_row(request.num_prompt - start);
      return ModelPass::Span{
          0, start,
          std::span(request.tokens)
              .subspan(static_cast<size_t>(start), static_cast<size_t>(end - start)),
          request.num_prompt};
    };
    for (int start = 0; start < window.begin; start += work.chunk_rows) {
      const ModelPass::Span before = span(start, std::min(start + work.chunk_rows, window.begin));
      RETURN_IF_ERROR(result.pass_.Forward(std::span(&before, 1), /*logits=*/false, seen).status());
      RETURN_IF_ERROR(work.pause());
    }
    const ModelPass::Span inside = span(window.begin, window.end);
    ASSIGN_OR_RETURN(result.logits_, result.pass_.Forward(std::span(&inside, 1), true, seen));
    RETURN_IF_ERROR(work.pause());
    return result;
  }
  std::span<const float> Row(int row) const {
    const auto width = static_cast<size_t>(pass_.out_columns());
    return logits_.subspan(static_cast<size_t>(row) * width, width);
  }

 private:
  explicit WindowPass(ModelPass pass) : pass_(std::move(pass)) {}
  ModelPass pass_;
  std::span<const float> logits_;
};

// A GPU shows no operands of its layers.
InputProfile* InputsOf(const Model& served, const ShadowEvaluator::Options& options) {
  return served.device().kind() == DeviceKind::kCuda ? nullptr : options.inputs;
}

size_t ArgMax(std::span<const float> values) {
  return static_cast<size_t>(std::max_element(values.begin(), values.end()) - values.begin());
}

bool AllFinite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

}  // namespace

absl::StatusOr<std::unique_ptr<ShadowEvaluator>> ShadowEvaluator::Create(
    std::shared_ptr<const Checkpoint> checkpoint) {
  ASSIGN_OR_RETURN(std::unique_ptr<const Model> reference, BuildOnFile(checkpoint));
  return std::unique_ptr<ShadowEvaluator>(
      new ShadowEvaluator(std::move(checkpoint), std::move(reference)));
}

absl::StatusOr<ShadowScore> ShadowEvaluator::Score(const Model& served, const KvFormat& kv_format,
                                                   const ServedRequest& request,
                                                   const Options& options, ThreadPool& pool,
                                                   const Pause& pause) const {
  return spec().task == ModelTask::kGenerate
             ? ScoreDecoder(served, kv_format, request, options, pool, pause)
             : ScoreEncoder(served, request, options, pool, pause);
}

absl::StatusOr<ShadowScore> ShadowEvaluator::ScoreDecoder(const Model& served,
                                                          const KvFormat& kv_format,
                                                          const ServedRequest& request,
                                                          const Options& options, ThreadPool& pool,
                                                          const Pause& pause) const {
  if (request.tokens.size() < 2) {
    return absl::InvalidArgumentError(
        absl::StrCat("nothing to predict: tokens=", request.tokens.size()));
  }
  const int chunk_rows = served.device().kind() == DeviceKind::kCuda ? kChunkRowsOnGpu : kChunkRows;
  const Window window = WindowOf(request, options, chunk_rows);
  const WindowPass::Work work{request, window, pool, pause, chunk_rows};
  ASSIGN_OR_RETURN(const WindowPass actual,
                   WindowPass::Run(served, kv_format, work, InputsOf(served, options)));
  ASSIGN_OR_RETURN(const WindowPass expected,
                   WindowPass::Run(*reference_, DType::kF32, work, nullptr));
  RETURN_IF_ERROR(checkpoint_->Unchanged());
  ShadowScore score{.tokens = window.end, .positions = window.end - window.begin};
  int emitted = 0;
  for (int p = window.begin; p < window.end; ++p) {
    const PositionScore position =
        ScorePosition(expected.Row(p - window.begin), actual.Row(p - window.begin),
                      request.tokens[static_cast<size_t>(p) + 1]);
    score.loss += position.finite ? position.kl : kInfinity;
    score.clipped += position.finite ? std::min(position.kl, options.clip) / options.clip : 1;
    score.top1_flip += position.finite && position.same_top1 ? 0 : 1;
    const int answer = p + 1 - request.num_prompt;
    if (answer < 0 || answer >= static_cast<int>(request.logprobs.size())) continue;
    const double served_logprob = request.logprobs[static_cast<size_t>(answer)];
    ++emitted;
    score.logprob_difference += served_logprob + position.nll_reference;
    const double again = std::abs(served_logprob + position.nll);
    score.replay_difference =
        std::max(score.replay_difference, position.finite ? again : kInfinity);
  }
  score.loss /= score.positions;
  score.clipped /= score.positions;
  score.top1_flip /= score.positions;
  if (emitted > 0) score.logprob_difference /= emitted;
  return score;
}

absl::StatusOr<ShadowScore> ShadowEvaluator::ScoreEncoder(const Model& served,
                                                          const ServedRequest& request,
                                                          const Options& options, ThreadPool& pool,
                                                          const Pause& pause) const {
  const auto length = static_cast<int>(request.tokens.size());
  const ModelPass::Size size{.sequences = 1, .context = length, .rows = length, .out_rows = 1};
  const ModelPass::Span span{
      .sequence = 0, .start = 0, .tokens = request.tokens, .token_types = request.token_types};
  ASSIGN_OR_RETURN(ModelPass actual_pass, ModelPass::Create(served, size, pool));
  InputProfile* const inputs = InputsOf(served, options);
  const LinearObserver observer = inputs == nullptr ? LinearObserver() : inputs->observer();
  ASSIGN_OR_RETURN(
      const std::span<const float> actual,
      actual_pass.Forward(std::span(&span, 1), true, inputs == nullptr ? nullptr : &observer));
  RETURN_IF_ERROR(pause());
  ASSIGN_OR_RETURN(ModelPass expected_pass, ModelPass::Create(*reference_, size, pool));
  ASSIGN_OR_RETURN(const std::span<const float> expected,
                   expected_pass.Forward(std::span(&span, 1)));
  RETURN_IF_ERROR(checkpoint_->Unchanged());
  ShadowScore score{.tokens = length, .positions = 1};
  if (spec().task == ModelTask::kClassify) {
    score.top1_flip = ArgMax(actual) == ArgMax(expected) ? 0 : 1;
    score.loss = score.top1_flip;
  } else {
    score.loss = std::max(0.0, 1 - Cosine(expected, actual));
  }
  if (!AllFinite(actual) || !AllFinite(expected)) score.loss = kInfinity;
  score.clipped = std::min(score.loss, options.clip) / options.clip;
  return score;
}

}  // namespace assay
