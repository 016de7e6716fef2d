// Every rounding method. A new family: its file under roundings/, a line in roundings/roundings.h,
// in kFamilies and in CMakeLists.txt; spellings that recipes use: lines in kSpellings.
#include <array>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "base/mutex.h"
#include "quant/methods/roundings/roundings.h"

namespace assay {
namespace {

constexpr std::array kFamilies = {&kNearestRounding, &kMseRounding,        &kImatrixRounding,
                                  &kAwqClipRounding, &kPercentileRounding, &kKlRounding,
                                  &kGptqRounding,    &kLearnedRounding,    &kHqqRounding};
constexpr std::array<std::string_view, 12> kSpellings = {"nearest",
                                                         "mse",
                                                         "imatrix",
                                                         "awq_clip",
                                                         "percentile",
                                                         "kl",
                                                         "gptq",
                                                         "gptq:act_order",
                                                         "gptq:act_order,asym",
                                                         "gptq:act_order,clip=imatrix",
                                                         "learned",
                                                         "hqq"};

// Objects by canonical spelling, never freed.
class Roundings {
 public:
  const Rounding* Get(std::unique_ptr<const Rounding> made) {
    const MutexLock lock(mutex_);
    const std::string name(made->name());
    return roundings_.try_emplace(name, std::move(made)).first->second.get();
  }

 private:
  Mutex mutex_;
  std::map<std::string, std::unique_ptr<const Rounding>> roundings_ GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<const Rounding*> FindRounding(std::string_view spelling) {
  static Roundings& roundings = *new Roundings;
  const size_t colon = spelling.find(':');
  const std::string_view text = colon == std::string_view::npos ? "" : spelling.substr(colon + 1);
  for (const RoundingFamily* family : kFamilies) {
    if (family->name != spelling.substr(0, colon)) continue;
    ASSIGN_OR_RETURN(const MethodOptions options,
                     MethodOptions::Parse(family->name, text, family->options()));
    return roundings.Get(family->make(options));
  }
  return absl::NotFoundError(absl::StrCat(
      "no rounding method of this name: ", std::string(spelling), "; known: ",
      absl::StrJoin(kFamilies, ", ", [](std::string* out, const RoundingFamily* family) {
        absl::StrAppend(out, std::string(family->name));
      })));
}

std::span<const Rounding* const> AllRoundings() {
  static const auto& roundings = *new std::vector<const Rounding*>([] {
    std::vector<const Rounding*> found;
    found.reserve(std::size(kSpellings));
    for (const std::string_view spelling : kSpellings)
      found.push_back(FindRounding(spelling).value());
    return found;
  }());
  return roundings;
}

absl::Status CheckStatistics(std::string_view method, StatisticsNeed need, const Shape& w,
                             const InputStatistics* input) {
  if (need == StatisticsNeed::kNothing) return absl::OkStatus();
  const std::string name(method);
  if (input == nullptr || input->tokens() == 0) {
    return absl::FailedPreconditionError(
        absl::StrCat(name, " needs statistics of the layer's input: tokens=0"));
  }
  if (w.rank != 2 || w[1] != input->k()) {
    return absl::FailedPreconditionError(
        absl::StrCat(name, " has statistics of an input of another size: w=", ToString(w),
                     " input=", input->k()));
  }
  if (need != StatisticsNeed::kSquares && !input->options().hessian) {
    return absl::FailedPreconditionError(
        absl::StrCat(name, " needs statistics with the Hessian, which were not collected"));
  }
  if (need == StatisticsNeed::kCross && !input->options().cross) {
    return absl::FailedPreconditionError(absl::StrCat(
        name, " needs statistics with the cross term of both inputs, which were not collected"));
  }
  return absl::OkStatus();
}

}  // namespace assay
