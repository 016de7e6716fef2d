// A rounding method: how the codes of a weight are found, given its scheme and what calibration
// knows about its input (design.md, "three independent axes"). One file per method in
// quant/methods/roundings/, one list in quant/methods/rounding_list.cc.
//
// Spelled like schemes, "gptq:act_order,damp=0.05"; each spelling is one object that lives as long
// as the process. Methods are stateless, const and thread-safe; Quantize uses the pool that it is
// given. The result depends on the arguments alone, for any number of threads, but where a deadline
// cut the search short.
#pragma once
#include <span>
#include <string_view>

#include "base/clock.h"
#include "base/thread_pool.h"
#include "quant/methods/input_statistics.h"
#include "quant/scheme.h"

namespace assay {

// What a method asks of InputStatistics. kHessian and kCross include kSquares.
enum class StatisticsNeed { kNothing, kSquares, kHessian, kCross };

struct RoundingContext {
  ThreadPool* pool = nullptr;  // null: the calling thread alone
  // Methods that improve step by step stop here, keep the best so far and still succeed.
  const Clock* clock = nullptr;  // null: no deadline
  absl::Time deadline = absl::InfiniteFuture();

  bool Expired() const { return clock != nullptr && clock->Now() >= deadline; }
};

class Rounding {
 public:
  virtual ~Rounding() = default;
  // The spelling, options in canonical order, defaults left out. In recipes and reports.
  virtual std::string_view name() const = 0;
  virtual StatisticsNeed needs() const = 0;
  // w [n, k] f32. `input` may be null where needs() is kNothing. FailedPrecondition: statistics
  // that are missing, too few (says how many rows there are and are needed) or of another k, or a
  // Hessian that cannot be factored; InvalidArgument: NaN or infinity in w, or a scheme whose grid
  // this method cannot steer.
  virtual absl::StatusOr<QuantizedTensor> Quantize(TensorView w, const QuantScheme& scheme,
                                                   const InputStatistics* input,
                                                   const RoundingContext& context) const = 0;
};

// Every family in its default spelling and the spellings that recipes use; tests iterate over it.
std::span<const Rounding* const> AllRoundings();
// By any valid spelling. NotFound lists the families; InvalidArgument names the option at fault and
// what the family takes.
absl::StatusOr<const Rounding*> FindRounding(std::string_view spelling);

// For methods and tests: FailedPrecondition unless `input` has what `need` says for a weight of
// shape [n, k].
absl::Status CheckStatistics(std::string_view method, StatisticsNeed need, const Shape& w,
                             const InputStatistics* input);

}  // namespace assay
