#include "quant/divergence.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace assay {
namespace {

// llama.cpp gives no errors below these numbers of positions.
constexpr size_t kMinForError = 11, kMinForCovariance = 10;

double Mean(std::span<const double> values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0 : sum / static_cast<double>(values.size());
}

// Mean, and its standard error from E[x^2] - E[x]^2.
WithError MeanWithError(std::span<const double> values) {
  const double mean = Mean(values);
  double squares = 0;
  for (const double value : values) squares += value * value;
  const auto n = static_cast<double>(values.size());
  const double variance = values.empty() ? 0 : squares / n - mean * mean;
  const bool known = variance > 0 && values.size() >= kMinForError;
  return {mean, known ? std::sqrt(variance / (n - 1)) : 0};
}

// Of the two means.
double Covariance(std::span<const double> a, std::span<const double> b) {
  if (a.size() < kMinForCovariance) return 0;
  double products = 0;
  for (size_t i = 0; i < a.size(); ++i) products += a[i] * b[i];
  const auto n = static_cast<double>(a.size());
  return (products / n - Mean(a) * Mean(b)) / (n - 1);
}

double Root(double variance) { return std::sqrt(std::max(variance, 0.0)); }  // rounding

// Levels descend, so `sorted` may be read once from its end; linear interpolation.
template <size_t N>
std::array<double, N> Quantiles(std::vector<double> values, const std::array<double, N>& levels) {
  std::sort(values.begin(), values.end());
  std::array<double, N> quantiles{};
  for (size_t i = 0; i < N && !values.empty(); ++i) {
    const double rank = levels[i] * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(rank);
    const size_t above = std::min(below + 1, values.size() - 1);
    const double part = rank - static_cast<double>(below);
    quantiles[i] = (1 - part) * values[below] + part * values[above];
  }
  return quantiles;
}

std::string LevelName(double level) {
  if (level == 1) return "Maximum";
  if (level == 0.5) return "Median";
  if (level == 0) return "Minimum";
  return absl::StrFormat("%.1f%%", 100 * level);
}

void FillPerplexity(std::span<const double> nll, std::span<const double> nll_reference,
                    DivergenceFigures& f) {
  const WithError ln = MeanWithError(nll), base = MeanWithError(nll_reference);
  const double covariance = Covariance(nll, nll_reference);
  const double ppl = std::exp(ln.value), ppl_reference = std::exp(base.value);
  f.perplexity = {ppl, ppl * ln.error};
  f.perplexity_reference = {ppl_reference, ppl_reference * base.error};
  const double errors = ln.error * base.error;
  f.log_perplexity_correlation = errors > 0 ? covariance / errors : 0;
  f.log_perplexity_ratio = {ln.value - base.value,
                            Root(ln.error * ln.error + base.error * base.error - 2 * covariance)};
  f.perplexity_ratio.value = std::exp(f.log_perplexity_ratio.value);
  f.perplexity_ratio.error = f.perplexity_ratio.value * f.log_perplexity_ratio.error;
  f.perplexity_difference = {ppl - ppl_reference,
                             Root(f.perplexity.error * f.perplexity.error +
                                  f.perplexity_reference.error * f.perplexity_reference.error -
                                  2 * ppl * ppl_reference * covariance)};
}

}  // namespace

void DivergenceMeter::BeginDocument() { documents_.emplace_back(); }

void DivergenceMeter::Add(const PositionScore& score) {
  if (!score.finite) {
    ++not_finite_;
    return;
  }
  if (documents_.empty()) BeginDocument();
  Document& document = documents_.back();
  document.kl += score.kl;
  document.top1 += score.same_top1 ? 1 : 0;
  document.nll_reference += score.nll_reference;
  document.nll += score.nll;
  ++document.positions;
  kl_.push_back(score.kl);
  nll_reference_.push_back(score.nll_reference);
  nll_.push_back(score.nll);
  same_top_ += score.same_top1 ? 1 : 0;
}

Estimate DivergenceMeter::MeanKl() const {
  std::vector<double> kl;
  for (const Document& document : documents_) {
    if (document.positions > 0) kl.push_back(document.kl / document.positions);
  }
  return EstimateMean(kl);
}

DivergenceMeter::Summary DivergenceMeter::Finish(const Bootstrap& bootstrap) const {
  Summary summary;
  summary.not_finite = not_finite_;
  summary.tokens = static_cast<int>(kl_.size());
  std::vector<double> kl, top1, log_ratio, positions;
  std::vector<int> sizes;
  for (const Document& document : documents_) {
    if (document.positions == 0) continue;
    kl.push_back(document.kl / document.positions);
    top1.push_back(document.top1 / document.positions);
    log_ratio.push_back(document.nll - document.nll_reference);
    positions.push_back(document.positions);
    sizes.push_back(document.positions);
  }
  summary.documents = static_cast<int>(kl.size());
  if (kl_.empty()) return summary;
  summary.mean_kl = EstimateMean(kl);
  summary.mean_kl_bootstrap = BootstrapMean(kl, bootstrap);
  summary.top1 = EstimateMean(top1);
  summary.top1_bootstrap = BootstrapMean(top1, bootstrap);
  summary.log_perplexity_ratio = EstimateRatio(log_ratio, positions);
  summary.log_perplexity_ratio_bootstrap = BootstrapRatio(log_ratio, positions, bootstrap);
  summary.kl_p999 = BootstrapQuantile(kl_, sizes, 0.999, bootstrap);
  summary.kl_max = *std::max_element(kl_.begin(), kl_.end());
  summary.perplexity_reference = std::exp(Mean(nll_reference_));
  summary.perplexity = std::exp(Mean(nll_));
  summary.perplexity_ratio = std::exp(summary.log_perplexity_ratio.mean);
  return summary;
}

DivergenceFigures DivergenceMeter::Figures() const {
  DivergenceFigures f;
  f.positions = static_cast<int>(kl_.size());
  if (kl_.empty()) return f;
  FillPerplexity(nll_, nll_reference_, f);
  f.mean_kl = MeanWithError(kl_);
  f.kl_quantiles = Quantiles(kl_, kKlLevels);
  std::vector<double> delta_p(kl_.size()), squares(kl_.size());
  for (size_t i = 0; i < kl_.size(); ++i) {
    delta_p[i] = std::exp(-nll_[i]) - std::exp(-nll_reference_[i]);
    squares[i] = delta_p[i] * delta_p[i];
  }
  f.mean_delta_p = MeanWithError(delta_p);
  const WithError mean_square = MeanWithError(squares);
  f.rms_delta_p.value = std::sqrt(mean_square.value);
  if (f.rms_delta_p.value > 0) f.rms_delta_p.error = 0.5 / f.rms_delta_p.value * mean_square.error;
  f.delta_p_quantiles = Quantiles(std::move(delta_p), kDeltaPLevels);
  const auto n = static_cast<double>(kl_.size());
  f.same_top.value = same_top_ / n;
  if (n > 1) f.same_top.error = Root(f.same_top.value * (1 - f.same_top.value) / (n - 1));
  return f;
}

std::string ToText(const DivergenceFigures& f) {
  std::string text;
  const auto line = [&](const char* name, const WithError& figure) {
    absl::StrAppendFormat(&text, "%-30s: %10.6f +/- %10.6f\n", name, figure.value, figure.error);
  };
  const auto percent = [&](const char* name, const WithError& figure) {
    absl::StrAppendFormat(&text, "%-10s: %6.3f +/- %5.3f %%\n", name, 100 * figure.value,
                          100 * figure.error);
  };
  line("Mean PPL(Q)", f.perplexity);
  line("Mean PPL(base)", f.perplexity_reference);
  absl::StrAppendFormat(&text, "%-30s: %6.2f%%\n", "Cor(ln(PPL(Q)), ln(PPL(base)))",
                        100 * f.log_perplexity_correlation);
  line("Mean ln(PPL(Q)/PPL(base))", f.log_perplexity_ratio);
  line("Mean PPL(Q)/PPL(base)", f.perplexity_ratio);
  line("Mean PPL(Q)-PPL(base)", f.perplexity_difference);
  absl::StrAppendFormat(&text, "\nMean    KLD: %10.6f +/- %10.6f\n", f.mean_kl.value,
                        f.mean_kl.error);
  for (size_t i = 0; i < kKlLevels.size(); ++i) {
    absl::StrAppendFormat(&text, "%-7s KLD: %10.6f\n", LevelName(kKlLevels[i]), f.kl_quantiles[i]);
  }
  text += '\n';
  percent("Mean    dp", f.mean_delta_p);
  for (size_t i = 0; i < kDeltaPLevels.size(); ++i) {
    absl::StrAppendFormat(&text, "%-7s dp: %6.3f%%\n", LevelName(kDeltaPLevels[i]),
                          100 * f.delta_p_quantiles[i]);
  }
  percent("RMS     dp", f.rms_delta_p);
  percent("Same top p", f.same_top);
  return text;
}

}  // namespace assay
