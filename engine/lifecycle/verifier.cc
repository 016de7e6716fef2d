#include "engine/lifecycle/verifier.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/thread_pool.h"

namespace assay {
namespace {

constexpr int kLookRows = 128;  // of the pass that looks for numbers that are not finite

// The decode path: documents side by side, after a prefix, step by step.
constexpr int kDecodePrefix = 16, kDecodeSteps = 16;
// Kernels are batch-invariant, so the two paths agree bit for bit; what is allowed for is a backend
// that sums in another order: logits off by 1e-4 give KL of about (1e-4)^2 / 2.
constexpr double kMaxDecodeKl = 1e-6;
// A GPU multiplies steps of more rows in another way (quant/kernels/cuda/cuda_linear.h), so the two
// paths are compared in steps of at most so many; and its attention rounds to bf16 (2^-9) at other
// places in prefill than in decode steps, after which 8-bit activations take other codes. The worst
// position's logits are off by up to 0.3: KL 0.05. What that costs on average is measured against
// the reference ("every row a decode step"); this bound is for steps that see another sequence.
constexpr int kSmallStep = 64;
constexpr double kMaxDecodeKlOnGpu = 0.05;
constexpr size_t kObserved = 2;  // documents

bool OnGpu(const Model& model) { return model.device().kind() == DeviceKind::kCuda; }

bool AllFinite(std::span<const float> values) {
  return std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); });
}

std::span<const float> Floats(TensorView view) {
  return {view.as<float>(), static_cast<size_t>(view.shape.elements())};
}

// Row `i` of [rows, columns].
std::span<const float> Row(std::span<const float> matrix, int64_t i, int64_t columns) {
  return matrix.subspan(static_cast<size_t>(i * columns), static_cast<size_t>(columns));
}

int32_t ArgMax(std::span<const float> row) {
  return static_cast<int32_t>(std::max_element(row.begin(), row.end()) - row.begin());
}

// Intervals of few documents reach beyond what the figure can be.
Estimate Within(Estimate e, double least, double most) {
  return {e.mean, std::clamp(e.low, least, most), std::clamp(e.high, least, most)};
}

void Fill(const DivergenceMeter::Summary& summary, VerificationResult& result) {
  constexpr double kNoMost = std::numeric_limits<double>::infinity();
  result.tokens = summary.tokens;
  result.documents = summary.documents;
  result.mean_kl = Within(summary.mean_kl, 0, kNoMost);
  result.mean_kl_bootstrap = summary.mean_kl_bootstrap;
  result.kl_p999 = summary.kl_p999;
  result.kl_max = summary.kl_max;
  result.top1_agreement = Within(summary.top1, 0, 1);
  result.top1_agreement_bootstrap = summary.top1_bootstrap;
  result.log_perplexity_ratio = summary.log_perplexity_ratio;
  result.log_perplexity_ratio_bootstrap = summary.log_perplexity_ratio_bootstrap;
  result.perplexity_reference = summary.perplexity_reference;
  result.perplexity = summary.perplexity;
  result.perplexity_ratio = summary.perplexity_ratio;
}

// Tokens before the decode path's first step: where near keys are read in another form than far
// ones, enough for both, as far as documents and kChunkRows allow.
int DecodePrefix(const EvaluationSet& set, const KvFormat& kv_format) {
  size_t longest = 0;
  for (const std::vector<int32_t>& document : set.documents)
    longest = std::max(longest, document.size());
  const int most = std::min(kChunkRows, static_cast<int>(longest)) - kDecodeSteps;
  return std::max(kDecodePrefix,
                  std::min(kDecodePrefix + kv_format.window + kv_format.sinks, most));
}

// The beginnings of as many documents as one pass has rows for.
std::vector<std::span<const int32_t>> DecodeDocuments(const EvaluationSet& set, int prefix,
                                                      size_t most_rows) {
  const auto context = static_cast<size_t>(prefix) + size_t{kDecodeSteps};
  std::vector<std::span<const int32_t>> documents;
  for (const std::vector<int32_t>& document : set.documents) {
    if (document.size() < static_cast<size_t>(prefix) + 2) continue;
    documents.push_back(std::span(document).first(std::min(document.size(), context)));
    if ((documents.size() + 1) * context > most_rows) break;
  }
  return documents;
}

// ", after 2 of 8 documents", when the comparison stopped there.
std::string WhereStopped(const VerificationResult& result) {
  if (result.documents >= result.documents_in_set) return "";
  return absl::StrCat(", after ", result.documents, " of ", result.documents_in_set, " documents");
}

}  // namespace

absl::StatusOr<std::unique_ptr<Verifier>> Verifier::Create(const LayerSource& reference,
                                                           const EvaluationSet& set,
                                                           ThreadPool& pool,
                                                           const Progress& progress) {
  ASSIGN_OR_RETURN(ReferenceOutputs outputs,
                   ReferenceOutputs::Record(reference, set, pool, progress));
  return std::unique_ptr<Verifier>(new Verifier(std::move(outputs), set, pool));
}

absl::StatusOr<VerificationResult> Verifier::Compare(const Model& candidate,
                                                     const KvFormat& kv_format,
                                                     const Extent& extent,
                                                     const Progress& progress) {
  const bool decoder = reference_.spec().task == ModelTask::kGenerate;
  ASSIGN_OR_RETURN(
      std::optional<ModelPass> pass,
      ModelPass::Create(
          candidate, PassSize(candidate.spec(), set_, decoder ? kv_format : KvFormat(DType::kF32)),
          pool_));
  const Outputs outputs = [&](size_t document, int start, int count) {
    std::vector<ModelPass::Span> spans;
    if (decoder) {
      const std::span<const int32_t> tokens = set_.documents[document];
      spans.push_back({0, start,
                       tokens.subspan(static_cast<size_t>(start), static_cast<size_t>(count)),
                       extent.decode_phase ? 0 : INT32_MAX});
    }
    for (int i = 0; !decoder && i < count; ++i)
      spans.push_back({i, 0, set_.documents[document + static_cast<size_t>(i)]});
    return pass->Forward(spans, true, document < kObserved ? extent.observer : nullptr);
  };
  ASSIGN_OR_RETURN(VerificationResult result, CompareOutputs(outputs, extent, progress));
  pass.reset();
  if (!decoder) return result;
  const bool whole = result.documents == result.documents_in_set;
  if (extent.decode_path && whole && result.defects.empty()) {
    RETURN_IF_ERROR(CompareDecodePath(candidate, kv_format, result));
  }
  return result;
}

absl::StatusOr<VerificationResult> Verifier::CompareOutputs(const Outputs& outputs,
                                                            const Extent& extent,
                                                            const Progress& progress) {
  return reference_.spec().task == ModelTask::kGenerate ? CompareDecoder(outputs, extent, progress)
                                                        : CompareEncoder(outputs, extent, progress);
}

absl::StatusOr<VerificationResult> Verifier::CompareDecoder(const Outputs& outputs,
                                                            const Extent& extent,
                                                            const Progress& progress) {
  const int64_t vocab = reference_.spec().vocab;
  const size_t documents = std::min(set_.documents.size(), static_cast<size_t>(extent.documents));
  DivergenceMeter meter;
  std::vector<PositionScore> scores;
  for (size_t d = 0; d < documents; ++d) {
    const std::span<const int32_t> tokens = set_.documents[d];
    const int length = std::min(static_cast<int>(tokens.size()), extent.tokens);
    meter.BeginDocument();
    for (int start = 0; start < length; start += extent.chunk_rows) {
      const int rows = std::min(extent.chunk_rows, length - start);
      const std::span<const float> expected = reference_.Logits(d, start, rows);
      ASSIGN_OR_RETURN(const std::span<const float> actual, outputs(d, start, rows));
      // The last token of a document predicts nothing that is known.
      const int scored = std::min(rows, static_cast<int>(tokens.size()) - 1 - start);
      scores.assign(static_cast<size_t>(std::max(scored, 0)), {});
      pool_.ParallelFor(scored, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          scores[static_cast<size_t>(i)] =
              ScorePosition(Row(expected, i, vocab), Row(actual, i, vocab),
                            tokens[static_cast<size_t>(start + i + 1)]);
        }
      });
      for (const PositionScore& score : scores) meter.Add(score);
      const double part = static_cast<double>(start + rows) / length;
      if (progress) RETURN_IF_ERROR(progress((static_cast<double>(d) + part) / documents));
    }
    if (extent.early.has_value() &&
        DecidesEarly(*extent.early, meter.MeanKl(), static_cast<int>(d + 1),
                     static_cast<int>(documents))) {
      break;
    }
  }
  const DivergenceMeter::Summary summary = meter.Finish();
  VerificationResult result;
  Fill(summary, result);
  result.figures = meter.Figures();
  result.documents_in_set = static_cast<int>(documents);
  if (summary.not_finite > 0) {
    result.defects.push_back(
        absl::StrCat("logits are NaN or infinite: positions=", summary.not_finite));
  }
  return result;
}

absl::Status Verifier::CompareDecodePath(const Model& candidate, const KvFormat& kv_format,
                                         VerificationResult& result) {
  const int prefix = DecodePrefix(set_, kv_format), context = prefix + kDecodeSteps;
  const bool on_gpu = OnGpu(candidate);
  const std::vector<std::span<const int32_t>> documents =
      DecodeDocuments(set_, prefix, static_cast<size_t>(on_gpu ? kSmallStep : kChunkRows));
  if (documents.empty()) return absl::OkStatus();
  const int64_t vocab = candidate.spec().vocab;
  const auto count = static_cast<int>(documents.size());
  const ModelPass::Size size{.sequences = count,
                             .context = context,
                             .rows = int64_t{count} * context,
                             .out_rows = int64_t{count} * context,
                             .kv_format = kv_format};
  ASSIGN_OR_RETURN(ModelPass prefill, ModelPass::Create(candidate, size, pool_));
  ModelPass::Size steps = size;
  steps.out_rows = count;
  ASSIGN_OR_RETURN(ModelPass decode, ModelPass::Create(candidate, steps, pool_));
  std::vector<ModelPass::Span> whole, prefixes;
  std::vector<int64_t> first_row;
  int64_t rows = 0;
  for (int d = 0; d < count; ++d) {
    const std::span<const int32_t> tokens = documents[static_cast<size_t>(d)];
    whole.push_back({d, 0, tokens});
    prefixes.push_back({d, 0, tokens.first(static_cast<size_t>(prefix))});
    first_row.push_back(rows);
    rows += static_cast<int64_t>(tokens.size());
  }
  ASSIGN_OR_RETURN(const std::span<const float> expected, prefill.Forward(whole));
  RETURN_IF_ERROR(decode.Forward(prefixes, /*logits=*/false).status());
  for (int step = prefix; step < context; ++step) {
    std::vector<ModelPass::Span> spans;  // one token of every document that goes on
    for (int d = 0; d < count; ++d) {
      const std::span<const int32_t> tokens = documents[static_cast<size_t>(d)];
      if (static_cast<size_t>(step) < tokens.size()) {
        // A GPU has kernels of its own for rows behind the prompt.
        spans.push_back(
            {d, step, tokens.subspan(static_cast<size_t>(step), 1), on_gpu ? prefix : INT32_MAX});
      }
    }
    if (spans.empty()) break;
    ASSIGN_OR_RETURN(const std::span<const float> actual, decode.Forward(spans));
    for (size_t i = 0; i < spans.size(); ++i) {
      const int64_t row = first_row[static_cast<size_t>(spans[i].sequence)] + step;
      const PositionScore score =
          ScorePosition(Row(expected, row, vocab), Row(actual, static_cast<int64_t>(i), vocab), 0);
      const double kl = score.finite ? score.kl : std::numeric_limits<double>::infinity();
      result.decode_kl_max = std::max(result.decode_kl_max, kl);
      ++result.decode_positions;
    }
  }
  const double most = on_gpu ? kMaxDecodeKlOnGpu : kMaxDecodeKl;
  if (!(result.decode_kl_max <= most)) {
    result.defects.push_back(absl::StrFormat(
        "decoding step by step disagrees with prefill: KL %.3g nats, at most %.3g expected",
        result.decode_kl_max, most));
  }
  return absl::OkStatus();
}

absl::StatusOr<VerificationResult> Verifier::CompareEncoder(const Outputs& outputs,
                                                            const Extent& extent,
                                                            const Progress& progress) {
  const size_t documents = std::min(set_.documents.size(), static_cast<size_t>(extent.documents));
  VerificationResult result;
  std::vector<double> cosines;
  size_t same_label = 0, not_finite = 0;
  for (size_t begin = 0; begin < documents; begin += kEncoderSequences) {
    const size_t end = std::min(begin + kEncoderSequences, documents);
    ASSIGN_OR_RETURN(const std::span<const float> actual,
                     outputs(begin, 0, static_cast<int>(end - begin)));
    for (size_t i = 0; i < end - begin; ++i) {
      result.tokens += static_cast<int>(set_.documents[begin + i].size());
      const std::span<const float> a = reference_.Output(begin + i);
      const auto b = Row(actual, static_cast<int64_t>(i), static_cast<int64_t>(a.size()));
      if (!AllFinite(a) || !AllFinite(b)) {
        ++not_finite;
        continue;
      }
      cosines.push_back(Cosine(a, b));
      same_label += ArgMax(a) == ArgMax(b) ? 1 : 0;
    }
    if (progress) {
      RETURN_IF_ERROR(progress(static_cast<double>(end) / static_cast<double>(documents)));
    }
  }
  result.documents = static_cast<int>(cosines.size());
  result.documents_in_set = static_cast<int>(documents);
  result.cosine = EstimateMean(cosines);
  result.cosine_bootstrap = BootstrapMean(cosines, {});
  if (!cosines.empty()) {
    result.cosine_min = *std::min_element(cosines.begin(), cosines.end());
    result.label_agreement = static_cast<double>(same_label) / static_cast<double>(cosines.size());
  }
  if (not_finite > 0) {
    result.defects.push_back(absl::StrCat("outputs are NaN or infinite: documents=", not_finite));
  }
  return result;
}

absl::StatusOr<std::string> Verifier::FindNotFinite(const Model& model) {
  ASSIGN_OR_RETURN(ModelPass pass,
                   ModelPass::Create(model, PassSize(model.spec(), set_, DType::kF32), pool_));
  std::string first;
  const LinearObserver look = [&](const LinearSlot& slot, TensorView x, TensorView y) {
    if (!first.empty()) return;
    if (!AllFinite(Floats(x))) {
      first = "input of " + slot.name;
    } else if (!AllFinite(Floats(y))) {
      first = "output of " + slot.name;
    }
  };
  const std::span<const int32_t> tokens = set_.documents.front();
  const ModelPass::Span span{0, 0, tokens.first(std::min(tokens.size(), size_t{kLookRows}))};
  RETURN_IF_ERROR(pass.Forward(std::span(&span, 1), true, &look).status());
  return first;
}

bool DecidesEarly(const Verifier::EarlyStop& early, const Estimate& mean_kl, int done, int all) {
  constexpr int kFewestToReject = 2, kFewestToAccept = 4;
  if (done >= all) return false;
  if (early.reject && done >= kFewestToReject && mean_kl.low > early.hopeless * early.max_mean_kl) {
    return true;
  }
  const bool look = done >= kFewestToAccept && (done == all / 4 || done == all / 2);
  const double half_width = mean_kl.high - mean_kl.mean;
  return early.accept && look && mean_kl.mean + 2 * half_width <= early.max_mean_kl;
}

std::vector<std::string> CheckBudget(const VerificationResult& result, const Budget& budget,
                                     ModelTask task) {
  std::vector<std::string> failures;
  // A mean from few documents proves little, so the bound must hold.
  const Estimate kl = Wider(result.mean_kl, result.mean_kl_bootstrap);
  const Estimate cosine = Wider(result.cosine, result.cosine_bootstrap);
  switch (task) {
    case ModelTask::kGenerate:
      if (!(kl.high <= budget.max_mean_kl)) {
        failures.push_back(absl::StrFormat("mean KL %.5f nats (at most %.5f with 95 %%) > %.5f%s",
                                           kl.mean, kl.high, budget.max_mean_kl,
                                           WhereStopped(result)));
      }
      if (!(result.top1_agreement.mean >= budget.min_top1)) {
        failures.push_back(absl::StrFormat("top-1 agreement %.2f %% < %.2f %%",
                                           100 * result.top1_agreement.mean,
                                           100 * budget.min_top1));
      }
      if (!(result.perplexity_ratio <= budget.max_perplexity_ratio)) {
        failures.push_back(absl::StrFormat("perplexity ratio %.5f > %.5f", result.perplexity_ratio,
                                           budget.max_perplexity_ratio));
      }
      break;
    case ModelTask::kEmbed:
      if (!(cosine.low >= budget.min_mean_cosine)) {
        failures.push_back(absl::StrFormat("mean cosine %.6f (at least %.6f with 95 %%) < %.6f",
                                           cosine.mean, cosine.low, budget.min_mean_cosine));
      }
      break;
    case ModelTask::kClassify:
      if (!(result.label_agreement >= budget.min_label_agreement)) {
        failures.push_back(absl::StrFormat("label agreement %.2f %% < %.2f %%",
                                           100 * result.label_agreement,
                                           100 * budget.min_label_agreement));
      }
      break;
  }
  return failures;
}

std::vector<std::string> CheckSlice(const SliceReport& slice, const Budget& budget) {
  VerificationResult guards = slice.result;
  guards.mean_kl = guards.mean_kl_bootstrap = {};
  std::vector<std::string> failures = CheckBudget(guards, budget, ModelTask::kGenerate);
  const double kl = slice.result.mean_kl.mean;
  if (!(kl <= budget.max_mean_kl)) {
    failures.insert(failures.begin(),
                    absl::StrFormat("mean KL %.5f nats > %.5f", kl, budget.max_mean_kl));
  }
  for (std::string& failure : failures) absl::StrAppend(&failure, " (", slice.name, ")");
  return failures;
}

}  // namespace assay
