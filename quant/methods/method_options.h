// The options of a method's spelling "family:flag,key=value". Thread-safe once made.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/status.h"

namespace assay {

struct OptionSpec {
  enum class Kind { kFlag, kNumber, kWord };
  std::string_view name;
  Kind kind = Kind::kFlag;
  double standard = 0, least = 0, most = 0;  // numbers: the default and the closed range
  std::span<const std::string_view> words;   // words: what may be said, the first is the default
};

class MethodOptions {
 public:
  // InvalidArgument: an unknown option, a value outside its range; names it and what is taken.
  static absl::StatusOr<MethodOptions> Parse(std::string_view family, std::string_view text,
                                             std::span<const OptionSpec> specs);

  // The family and the options that differ from their defaults, in the order of the specs.
  std::string spelling() const;
  // REQUIRES: `name` is one of the specs.
  bool flag(std::string_view name) const { return value(name).number != 0; }
  double number(std::string_view name) const { return value(name).number; }
  std::string_view word(std::string_view name) const { return value(name).word; }

 private:
  struct Value {
    OptionSpec spec;
    double number = 0;
    std::string word;
  };
  absl::Status Set(std::string_view option);
  const Value& value(std::string_view name) const;

  std::string family_;
  std::vector<Value> values_;
};

// "act_order, damp=0..1, clip=none|mse": for messages.
std::string Describe(std::span<const OptionSpec> specs);

}  // namespace assay
