// "gptq" (Frantar et al., arXiv:2210.17323; reference/quantization 1.6): columns are rounded one by
// one, and what a column lost is made up for in the columns to come, as the Hessian of the layer's
// output error says.
//
//   act_order      columns in order of falling Hessian diagonal; implies static groups, so that no
//                  gather is needed at run time
//   static_groups  grids of all groups from the original weight; else a group's grid is fitted to
//                  the updated weight when the group is entered
//   damp=0.01      share of the mean diagonal that is added to it; retried with more, up to 1,
//   while
//                  the Hessian cannot be factored
//   block=128      columns between updates of all the rest; changes no result but for rounding
//   rows=4         calibration rows needed per input channel: with fewer than k the Hessian is
//                  singular and GPTQ is worse than nearest rounding (measured: 10.1 against 10.6
//                  dB)
//   clip=none      none, mse, imatrix or awq: static grids are clipped by that search
//   asym           GPTAQ (arXiv:2504.02692): also makes up for the error of the layer's input, with
//                  weight alpha=0.25
#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "quant/methods/clip_search.h"
#include "quant/methods/linear_algebra.h"
#include "quant/methods/roundings/roundings.h"
#include "quant/schemes/matrix_checks.h"

namespace assay {
namespace {

using Kind = OptionSpec::Kind;
constexpr std::array<std::string_view, 4> kClips = {"none", "mse", "imatrix", "awq"};
constexpr std::array<OptionSpec, 8> kOptions = {{{"act_order", Kind::kFlag, 0, 0, 0, {}},
                                                 {"static_groups", Kind::kFlag, 0, 0, 0, {}},
                                                 {"damp", Kind::kNumber, 0.01, 0, 1, {}},
                                                 {"block", Kind::kNumber, 128, 1, 4096, {}},
                                                 {"rows", Kind::kNumber, 4, 0, 1000, {}},
                                                 {"clip", Kind::kWord, 0, 0, 0, kClips},
                                                 {"asym", Kind::kFlag, 0, 0, 0, {}},
                                                 {"alpha", Kind::kNumber, 0.25, 0, 1, {}}}};

// W as it changes, transposed and in the order in which columns are rounded.
struct Problem {
  TensorView w;  // [n, k], dead columns zero
  const QuantScheme* scheme = nullptr;
  int64_t n = 0, k = 0, group = 0, block = 0;
  std::vector<int64_t> order;   // [k]: column rounded as the i-th
  std::vector<double> u;        // [k, k] upper, U^T U = H^-1, in that order
  std::vector<double> p;        // [k, k] strictly upper: GPTAQ; or empty
  QuantizedTensor static_grid;  // without scheme: groups are fitted when they are entered
  ThreadPool* pool = nullptr;
};

class Sweep {
 public:
  explicit Sweep(const Problem& problem)
      : p_(problem), columns_(p_.k * p_.n), rounded_(p_.n * p_.k), fitted_(p_.n * p_.k) {
    const float* w = p_.w.as<float>();
    std::copy_n(w, p_.n * p_.k, fitted_.begin());
    for (int64_t i = 0; i < p_.k; ++i) {
      for (int64_t row = 0; row < p_.n; ++row)
        columns_[i * p_.n + row] = w[row * p_.k + p_.order[i]];
    }
  }

  absl::Status Run() {
    for (int64_t first = 0; first < p_.k; first += p_.block) {
      const int64_t last = std::min(first + p_.block, p_.k);
      errors_.assign((last - first) * p_.n, 0);
      for (int64_t i = first; i < last; ++i) {
        RETURN_IF_ERROR(EnterGroup(i));
        RoundColumn(i, first, last);
      }
      UpdateTail(first, last);
    }
    return absl::OkStatus();
  }

  // [n, k]: the grid values chosen.
  const std::vector<float>& rounded() const { return rounded_; }
  // [n, k]: the weight that, fitted, gives the grids that were used.
  const std::vector<float>& fitted() const { return fitted_; }

 private:
  // Fits the grid of the group that starts at column i to the weight as it is now.
  absl::Status EnterGroup(int64_t i) {
    if (p_.static_grid.scheme != nullptr || i % p_.group != 0) return absl::OkStatus();
    const int64_t size = std::min(p_.group, p_.k - i);
    ASSIGN_OR_RETURN(Tensor slice, Tensor::Create(CpuDevice(), Shape{p_.n, size}, DType::kF32));
    for (int64_t row = 0; row < p_.n; ++row) {
      for (int64_t j = 0; j < size; ++j) {
        const auto value = static_cast<float>(columns_[(i + j) * p_.n + row]);
        slice.data<float>()[row * size + j] = fitted_[row * p_.k + i + j] = value;
      }
    }
    ASSIGN_OR_RETURN(group_grid_, p_.scheme->Fit(slice.view(), {}));
    return absl::OkStatus();
  }

  void RoundColumn(int64_t i, int64_t first, int64_t last) {
    const int64_t n = p_.n, k = p_.k, column = p_.order[i];
    const double* w = columns_.data() + i * n;
    std::vector<float> current(w, w + n), nearest(n);
    const bool is_static = p_.static_grid.scheme != nullptr;
    p_.scheme->NearestColumn(is_static ? p_.static_grid : group_grid_,
                             is_static ? column : i % p_.group, current, std::span<float>(nearest));
    double* error = errors_.data() + (i - first) * n;
    const double inverse = 1 / p_.u[i * k + i];
    for (int64_t row = 0; row < n; ++row) {
      rounded_[row * k + column] = nearest[row];
      error[row] = (w[row] - nearest[row]) * inverse;
    }
    for (int64_t j = i + 1; j < last; ++j) {
      double* to = columns_.data() + j * n;
      const double factor = p_.u[i * k + j];
      for (int64_t row = 0; row < n; ++row) to[row] -= factor * error[row];
      if (p_.p.empty()) continue;
      const double correction = p_.p[i * k + j];
      for (int64_t row = 0; row < n; ++row) to[row] += correction * w[row];
    }
  }

  // All columns behind the block, for the whole block at once.
  void UpdateTail(int64_t first, int64_t last) {
    ProductJob<double> job{.m = p_.k - last,
                           .n = p_.n,
                           .p = last - first,
                           .a = {p_.u.data() + first * p_.k + last, 1, p_.k},
                           .b = {errors_.data(), p_.n, 1},
                           .c = columns_.data() + last * p_.n,
                           .c_row = p_.n,
                           .alpha = -1};
    AddProduct(job, p_.pool);
    if (p_.p.empty()) return;
    job.a.data = p_.p.data() + first * p_.k + last;
    job.b.data = columns_.data() + first * p_.n;
    job.alpha = 1;
    AddProduct(job, p_.pool);
  }

  const Problem& p_;
  std::vector<double> columns_;  // [k, n]
  std::vector<double> errors_;   // [block, n], divided by the diagonal of U
  std::vector<float> rounded_, fitted_;
  QuantizedTensor group_grid_;
};

// m with rows and columns in the order given.
std::vector<double> Permuted(const std::vector<double>& m, const std::vector<int64_t>& order) {
  const auto k = static_cast<int64_t>(order.size());
  std::vector<double> out(m.size());
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) out[i * k + j] = m[order[i] * k + order[j]];
  }
  return out;
}

// The factor for h with damping, more of it as long as h is not positive definite.
absl::StatusOr<std::vector<double>> DampedFactor(const std::vector<double>& h, int64_t k,
                                                 double damp, ThreadPool* pool) {
  double mean = 0;
  for (int64_t i = 0; i < k; ++i) mean += h[i * k + i] / static_cast<double>(k);
  absl::Status failed;
  constexpr double kStep = 0.01;
  for (double share = damp; share <= 1; share = std::max(2 * share, kStep)) {
    std::vector<double> damped = h;
    for (int64_t i = 0; i < k; ++i) damped[i * k + i] += share * mean;
    absl::StatusOr<std::vector<double>> u = UpperFactorOfInverse(damped, k, pool);
    if (u.ok()) return u;
    failed = u.status();
  }
  return Annotate(failed, absl::StrCat("gptq: Hessian cannot be factored with any damping from ",
                                       damp, " to 1"));
}

// alpha triu(D U^T, 1) U: GPTAQ's correction.
std::vector<double> AsymmetricCorrection(const std::vector<double>& d, const std::vector<double>& u,
                                         int64_t k, double alpha, ThreadPool* pool) {
  std::vector<double> product(k * k), correction(k * k);
  AddProduct(ProductJob<double>{.m = k,
                                .n = k,
                                .p = k,
                                .a = {d.data(), k, 1},
                                .b = {u.data(), 1, k},
                                .c = product.data(),
                                .c_row = k,
                                .alpha = alpha},
             pool);
  for (int64_t i = 0; i < k; ++i) std::fill_n(product.begin() + i * k, i + 1, 0.0);
  AddProduct(ProductJob<double>{.m = k,
                                .n = k,
                                .p = k,
                                .a = {product.data(), k, 1},
                                .b = {u.data(), k, 1},
                                .c = correction.data(),
                                .c_row = k},
             pool);
  return correction;
}

class Gptq final : public Rounding {
 public:
  explicit Gptq(const MethodOptions& options)
      : name_(options.spelling()),
        act_order_(options.flag("act_order")),
        static_groups_(options.flag("static_groups") || act_order_ ||
                       options.word("clip") != "none"),
        damp_(options.number("damp")),
        block_(static_cast<int64_t>(options.number("block"))),
        rows_(options.number("rows")),
        clip_(options.word("clip")),
        asym_(options.flag("asym")),
        alpha_(options.number("alpha")) {}

  std::string_view name() const override { return name_; }
  StatisticsNeed needs() const override {
    return asym_ ? StatisticsNeed::kCross : StatisticsNeed::kHessian;
  }

  absl::StatusOr<QuantizedTensor> Quantize(TensorView w, const QuantScheme& scheme,
                                           const InputStatistics* input,
                                           const RoundingContext& context) const override {
    RETURN_IF_ERROR(CheckStatistics(name_, needs(), w.shape, input));
    RETURN_IF_ERROR(CheckEncodable(name_, w));
    RETURN_IF_ERROR(scheme.Accepts(w.shape));
    const int64_t n = w.shape[0], k = w.shape[1];
    if (static_cast<double>(input->tokens()) < rows_ * static_cast<double>(k)) {
      return absl::FailedPreconditionError(absl::StrCat(
          name_, " needs ", rows_, " calibration rows per input channel: rows=", input->tokens(),
          " needed=", rows_ * static_cast<double>(k), " k=", k));
    }
    if (scheme.is_floating()) return scheme.Encode(w);
    Problem problem{.scheme = &scheme,
                    .n = n,
                    .k = k,
                    .group = scheme.group(w.shape),
                    .block = block_,
                    .pool = context.pool};
    ASSIGN_OR_RETURN(const Tensor alive, Factor(w, *input, &problem));
    problem.w = alive.view();
    const bool is_static = static_groups_ || problem.group == k;
    if (is_static) {
      ASSIGN_OR_RETURN(problem.static_grid, StaticGrid(problem, input));
    }
    std::vector<float> rounded;
    ASSIGN_OR_RETURN(QuantizedTensor q, RunSweep(problem, &rounded));
    if (is_static) return q;
    ASSIGN_OR_RETURN(const bool faithful, Holds(q, rounded));
    if (faithful) return q;
    // Groups that share a second level of scales (nf4 with double quantization, nvfp4) cannot be
    // fitted one by one.
    ASSIGN_OR_RETURN(problem.static_grid, StaticGrid(problem, input));
    return RunSweep(problem, &rounded);
  }

 private:
  // Fills order, u and p; returns W with dead columns (inputs that are always 0) set to 0.
  absl::StatusOr<Tensor> Factor(TensorView w, const InputStatistics& input,
                                Problem* problem) const {
    const int64_t n = problem->n, k = problem->k;
    ASSIGN_OR_RETURN(Tensor alive, Tensor::Create(CpuDevice(), w.shape, DType::kF32));
    std::copy_n(w.as<float>(), n * k, alive.data<float>());
    std::vector<double> h = input.Hessian<double>();
    for (int64_t j = 0; j < k; ++j) {
      if (h[j * k + j] != 0) continue;
      h[j * k + j] = 1;
      for (int64_t row = 0; row < n; ++row) alive.data<float>()[row * k + j] = 0;
    }
    problem->order.resize(k);
    std::iota(problem->order.begin(), problem->order.end(), int64_t{0});
    if (act_order_) {
      std::stable_sort(problem->order.begin(), problem->order.end(),
                       [&](int64_t a, int64_t b) { return h[a * k + a] > h[b * k + b]; });
      h = Permuted(h, problem->order);
    }
    ASSIGN_OR_RETURN(problem->u, DampedFactor(h, k, damp_, problem->pool));
    if (asym_) {
      problem->p = AsymmetricCorrection(Permuted(input.Cross(), problem->order), problem->u, k,
                                        alpha_, problem->pool);
    }
    return alive;
  }

  absl::StatusOr<QuantizedTensor> StaticGrid(const Problem& problem,
                                             const InputStatistics* input) const {
    if (clip_ == "none") return problem.scheme->Fit(problem.w, {});
    ClipSearch search{.pool = problem.pool};
    if (clip_ == "imatrix") search = {ClipSearch::Error::kSquares, 2, 100, 0.2, problem.pool};
    if (clip_ == "awq") search = {ClipSearch::Error::kOutput, 2, 20, 0.5, problem.pool};
    ASSIGN_OR_RETURN(const std::vector<float> shrink,
                     SearchShrink(problem.w, *problem.scheme, input, search));
    return problem.scheme->Fit(problem.w, {.shrink = shrink});
  }

  // `rounded` receives the grid values [n, k] that the sweep chose. Uses up the static grid.
  static absl::StatusOr<QuantizedTensor> RunSweep(Problem& problem, std::vector<float>* rounded) {
    Sweep sweep(problem);
    RETURN_IF_ERROR(sweep.Run());
    const auto view = [&](const std::vector<float>& values) {
      return TensorView{reinterpret_cast<const std::byte*>(values.data()), problem.w.shape,
                        DType::kF32, problem.w.device};
    };
    QuantizedTensor grid = std::move(problem.static_grid);
    if (grid.scheme == nullptr) {
      ASSIGN_OR_RETURN(grid, problem.scheme->Fit(view(sweep.fitted()), {}));
    }
    *rounded = sweep.rounded();
    return problem.scheme->EncodeOn(view(*rounded), std::move(grid));
  }

  // Whether q decodes to these values, but for the rounding of one multiplication.
  static absl::StatusOr<bool> Holds(const QuantizedTensor& q, const std::vector<float>& values) {
    std::vector<float> decoded(values.size());
    RETURN_IF_ERROR(q.scheme->DecodeRows(q, 0, q.shape[0], std::span<float>(decoded)));
    for (size_t i = 0; i < values.size(); ++i) {
      if (std::fabs(decoded[i] - values[i]) > 1e-5f * std::fabs(values[i]) + 1e-30f) return false;
    }
    return true;
  }

  const std::string name_;
  const bool act_order_, static_groups_;
  const double damp_;
  const int64_t block_;
  const double rows_;
  const std::string clip_;
  const bool asym_;
  const double alpha_;
};

}  // namespace

const RoundingFamily kGptqRounding = {
    "gptq", [] { return std::span<const OptionSpec>(kOptions); },
    [](const MethodOptions& options) -> std::unique_ptr<const Rounding> {
      return std::make_unique<Gptq>(options);
    }};

}  // namespace assay
