#include "server/request_parameters.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace assay {
namespace {

using Parameter = inference::InferParameter;

absl::Status Wrong(const std::string& name, std::string_view expected) {
  return absl::InvalidArgumentError(
      absl::StrCat("parameter '", name, "': expected ", std::string(expected)));
}

std::optional<double> NumberOf(const Parameter& p) {
  switch (p.parameter_choice_case()) {
    case Parameter::kInt64Param:
      return static_cast<double>(p.int64_param());
    case Parameter::kUint64Param:
      return static_cast<double>(p.uint64_param());
    case Parameter::kDoubleParam:
      return p.double_param();
    default:
      return std::nullopt;
  }
}

absl::Status ReadInt(const std::string& name, const Parameter& p, int& out) {
  const std::optional<double> number = NumberOf(p);
  if (!number || std::floor(*number) != *number ||
      std::fabs(*number) > std::numeric_limits<int>::max()) {
    return Wrong(name, "a whole number");
  }
  out = static_cast<int>(*number);
  return absl::OkStatus();
}

absl::Status ReadFloat(const std::string& name, const Parameter& p, float& out) {
  const std::optional<double> number = NumberOf(p);
  if (!number || !std::isfinite(*number)) return Wrong(name, "a finite number");
  out = static_cast<float>(*number);
  return absl::OkStatus();
}

absl::Status ReadBool(const std::string& name, const Parameter& p, bool& out) {
  if (p.parameter_choice_case() != Parameter::kBoolParam) return Wrong(name, "a boolean");
  out = p.bool_param();
  return absl::OkStatus();
}

absl::Status ReadSeed(const std::string& name, const Parameter& p, uint64_t& out) {
  if (p.parameter_choice_case() == Parameter::kUint64Param) {
    out = p.uint64_param();
  } else if (p.parameter_choice_case() == Parameter::kInt64Param) {
    out = static_cast<uint64_t>(p.int64_param());
  } else {
    return Wrong(name, "a whole number");
  }
  return absl::OkStatus();
}

// A list in a parameter is a string that holds a JSON array.
template <typename T>
absl::Status ReadList(const std::string& name, const Parameter& p, std::vector<T>& out) {
  const nlohmann::json json =
      nlohmann::json::parse(p.string_param(), nullptr, /*allow_exceptions=*/false);
  const bool fits = json.is_array() && std::all_of(json.begin(), json.end(), [](const auto& v) {
                      return std::is_same_v<T, std::string> ? v.is_string() : v.is_number_integer();
                    });
  if (!fits)
    return Wrong(name, "a string that holds a JSON array of " +
                           std::string(std::is_same_v<T, std::string> ? "strings" : "token ids"));
  if constexpr (std::is_same_v<T, int32_t>) {
    for (const nlohmann::json& value : json) {
      const bool negative = value.is_number_integer() && !value.is_number_unsigned();
      if (negative || value.get<uint64_t>() > std::numeric_limits<int32_t>::max()) {
        return Wrong(name, "token ids from 0 to 2147483647, found " + value.dump());
      }
    }
  }
  out = json.get<std::vector<T>>();
  return absl::OkStatus();
}

absl::Status ReadStop(const std::string& name, const Parameter& p, std::vector<std::string>& out) {
  if (p.parameter_choice_case() != Parameter::kStringParam) {
    return Wrong(name, "a string, or a string that holds a JSON array of strings");
  }
  const bool is_json = nlohmann::json::accept(p.string_param());
  if (is_json && absl::StartsWith(p.string_param(), "[")) return ReadList(name, p, out);
  out = {p.string_param()};
  return absl::OkStatus();
}

absl::Status ReadTimeout(const std::string& name, const Parameter& p, absl::Duration& out) {
  const std::optional<double> microseconds = NumberOf(p);
  if (!microseconds || *microseconds < 0) return Wrong(name, "microseconds, 0 = none");
  if (*microseconds > 0) out = absl::Microseconds(*microseconds);
  return absl::OkStatus();
}

// Triton's clients send these even when they mean nothing.
absl::Status ReadUnsupported(const std::string& name, const Parameter& p) {
  const bool unset =
      (NumberOf(p) && *NumberOf(p) == 0) ||
      (p.parameter_choice_case() == Parameter::kBoolParam && !p.bool_param()) ||
      (p.parameter_choice_case() == Parameter::kStringParam && p.string_param().empty());
  if (unset) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("parameter '", name, "': this server has no sequences and no priorities"));
}

struct Row {
  const char* name;
  std::function<absl::Status(const std::string&, const Parameter&, RequestParameters&)> read;
};

#define ASSAY_PARAMETER(name, Read, field)                                       \
  Row {                                                                          \
    name, [](const std::string& n, const Parameter& p, RequestParameters& out) { \
      return Read(n, p, out.field);                                              \
    }                                                                            \
  }

const std::vector<Row>& GenerateRows() {
  static const auto& rows = *new std::vector<Row>{
      ASSAY_PARAMETER("max_tokens", ReadInt, sampling.max_tokens),
      ASSAY_PARAMETER("temperature", ReadFloat, sampling.temperature),
      ASSAY_PARAMETER("top_k", ReadInt, sampling.top_k),
      ASSAY_PARAMETER("top_p", ReadFloat, sampling.top_p),
      ASSAY_PARAMETER("min_p", ReadFloat, sampling.min_p),
      ASSAY_PARAMETER("repetition_penalty", ReadFloat, sampling.repetition_penalty),
      ASSAY_PARAMETER("presence_penalty", ReadFloat, sampling.presence_penalty),
      ASSAY_PARAMETER("frequency_penalty", ReadFloat, sampling.frequency_penalty),
      ASSAY_PARAMETER("seed", ReadSeed, sampling.seed),
      ASSAY_PARAMETER("stop", ReadStop, sampling.stop),
      ASSAY_PARAMETER("stop_token_ids", ReadList, sampling.stop_token_ids),
      ASSAY_PARAMETER("ignore_eos", ReadBool, sampling.ignore_eos),
      ASSAY_PARAMETER("stream", ReadBool, stream),
  };
  return rows;
}

const std::vector<Row>& EncodeRows() {
  static const auto& rows = *new std::vector<Row>{ASSAY_PARAMETER("truncate", ReadBool, truncate)};
  return rows;
}

const std::vector<Row>& ProtocolRows() {
  const auto unsupported = [](const std::string& n, const Parameter& p, RequestParameters&) {
    return ReadUnsupported(n, p);
  };
  const auto ignored = [](const std::string&, const Parameter&, RequestParameters&) {
    return absl::OkStatus();
  };
  static const auto& rows = *new std::vector<Row>{
      ASSAY_PARAMETER("timeout", ReadTimeout, timeout),
      ASSAY_PARAMETER("triton_enable_empty_final_response", ReadBool, empty_final_response),
      {"sequence_id", unsupported},
      {"sequence_start", unsupported},
      {"sequence_end", unsupported},
      {"priority", unsupported},
      {"binary_data_output", ignored},  // of Triton's HTTP dialect; gRPC is always binary
      {"headers", ignored},
  };
  return rows;
}

#undef ASSAY_PARAMETER

}  // namespace

absl::StatusOr<RequestParameters> ParseParameters(
    const google::protobuf::Map<std::string, inference::InferParameter>& parameters,
    ModelTask task) {
  RequestParameters out;
  out.sampling.logprobs = -1;  // the protocol's outputs have no place for them
  const std::vector<Row>& own = task == ModelTask::kGenerate ? GenerateRows() : EncodeRows();
  for (const auto& [name, value] : parameters) {
    const Row* found = nullptr;
    for (const auto* rows : {&own, &ProtocolRows()}) {
      for (const Row& row : *rows) {
        if (name == row.name) found = &row;
      }
    }
    if (found == nullptr) {
      const std::string known =
          absl::StrJoin(own, ", ", [](std::string* s, const Row& row) { s->append(row.name); });
      return absl::InvalidArgumentError(
          absl::StrCat("unknown parameter '", name, "'; this model takes: ", known));
    }
    RETURN_IF_ERROR(found->read(name, value, out));
  }
  if (task == ModelTask::kGenerate) RETURN_IF_ERROR(Validate(out.sampling));
  return out;
}

}  // namespace assay
