// What flows into the linears of one model, as far as drift of the input shows in it: how large
// each channel becomes, and how much of it a static scale cuts off. Collected by an observer of
// passes that are made anyway: of verification at admission, and of sampled requests afterwards
// (input_drift.h). Memory: 4 bytes per channel of every linear. One thread uses a profile.
//
// Outliers: channels whose largest value is kOutlier times that of the median channel, the columns
// of LLM.int8() (arXiv:2208.07339) without its absolute threshold.
#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "engine/model/model.h"

namespace assay {

// Of one linear's input.
struct InputSummary {
  double absmax = 0, median = 0;  // of the channels' largest values
  double saturation = 0;  // share of values outside of the static range; 0 where there is none
  std::vector<int32_t> outliers;  // ascending
};

class InputProfile {
 public:
  static constexpr double kOutlier = 6;

  // Of a model with the same slots as `model`. Embedding tables have an input
  // where they are the head as well.
  explicit InputProfile(const Model& model);
  // Rows of the next passes from this one on are decode steps: where an activation mode is static
  // in these alone, the others are not counted. Without a call all are.
  void set_first_decode_row(int64_t row) { first_decode_row_ = row; }
  LinearObserver observer();  // the profile outlives it

  struct Slot {
    std::vector<float> absmax;  // [k]
    std::optional<StaticRange> range;
    bool decode_only = false;
    int64_t values = 0, cut = 0;  // under the static range

    double saturation() const {
      return values == 0 ? 0 : static_cast<double>(cut) / static_cast<double>(values);
    }
  };
  // By slot; those that no pass has touched are all zero.
  const std::map<std::string, Slot, std::less<>>& slots() const { return slots_; }
  // As if `other`, of the same model, had been seen as well.
  void Merge(const InputProfile& other);

 private:
  void Observe(const LinearSlot& slot, TensorView x);
  std::map<std::string, Slot, std::less<>> slots_;
  int64_t first_decode_row_ = 0;
};

// Of an even number of channels the upper median.
InputSummary Summarize(const InputProfile::Slot& slot);

}  // namespace assay
