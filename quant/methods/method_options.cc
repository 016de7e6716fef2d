#include "quant/methods/method_options.h"

#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace assay {
namespace {

using Kind = OptionSpec::Kind;

std::string Words(const OptionSpec& spec) {
  return absl::StrJoin(spec.words, "|", [](std::string* out, std::string_view word) {
    absl::StrAppend(out, std::string(word));
  });
}

}  // namespace

std::string Describe(std::span<const OptionSpec> specs) {
  if (specs.empty()) return "no options";
  return absl::StrJoin(specs, ", ", [](std::string* out, const OptionSpec& spec) {
    absl::StrAppend(out, std::string(spec.name));
    if (spec.kind == Kind::kNumber) absl::StrAppend(out, "=", spec.least, "..", spec.most);
    if (spec.kind == Kind::kWord) absl::StrAppend(out, "=", Words(spec));
  });
}

absl::StatusOr<MethodOptions> MethodOptions::Parse(std::string_view family, std::string_view text,
                                                   std::span<const OptionSpec> specs) {
  MethodOptions options;
  options.family_ = std::string(family);
  for (const OptionSpec& spec : specs) {
    options.values_.push_back(
        {spec, spec.standard, spec.words.empty() ? std::string() : std::string(spec.words[0])});
  }
  if (text.empty()) return options;
  for (const std::string& option : std::vector<std::string>(absl::StrSplit(std::string(text), ',')))
    if (absl::Status status = options.Set(option); !status.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat(std::string(family), ": ", status.message(), "; takes ", Describe(specs)));
    }
  return options;
}

absl::Status MethodOptions::Set(std::string_view option) {
  const size_t equals = option.find('=');
  const std::string_view name = option.substr(0, equals);
  const std::string text(equals == std::string_view::npos ? "" : option.substr(equals + 1));
  const auto found = std::find_if(values_.begin(), values_.end(),
                                  [&](const Value& value) { return value.spec.name == name; });
  if (found == values_.end())
    return absl::InvalidArgumentError(absl::StrCat("unknown option \"", std::string(option), "\""));
  const OptionSpec& spec = found->spec;
  bool valid = false;
  switch (spec.kind) {
    case Kind::kFlag:
      valid = equals == std::string_view::npos;
      found->number = 1;
      break;
    case Kind::kNumber:
      valid = absl::SimpleAtod(text, &found->number) && found->number >= spec.least &&
              found->number <= spec.most;
      break;
    case Kind::kWord:
      valid = std::find(spec.words.begin(), spec.words.end(), text) != spec.words.end();
      found->word = text;
      break;
  }
  if (valid) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("cannot take \"", std::string(option), "\""));
}

std::string MethodOptions::spelling() const {
  std::vector<std::string> parts;
  for (const Value& value : values_) {
    const std::string name(value.spec.name);
    if (value.spec.kind == Kind::kWord) {
      if (value.word != value.spec.words[0]) parts.push_back(absl::StrCat(name, "=", value.word));
    } else if (value.number != value.spec.standard) {
      parts.push_back(value.spec.kind == Kind::kFlag ? name
                                                     : absl::StrCat(name, "=", value.number));
    }
  }
  return parts.empty() ? family_ : absl::StrCat(family_, ":", absl::StrJoin(parts, ","));
}

const MethodOptions::Value& MethodOptions::value(std::string_view name) const {
  const auto found = std::find_if(values_.begin(), values_.end(),
                                  [&](const Value& value) { return value.spec.name == name; });
  return *found;
}

}  // namespace assay
