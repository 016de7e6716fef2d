// What a run asks for, read from YAML (docs/loadtest.md documents every key).
// Times of configuration are absl::Duration; lengths are words of a prompt and tokens of an answer.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "base/status.h"

namespace assay::load {

// Whole numbers from 1 on.
struct Distribution {
  enum class Shape { kFixed, kUniform, kLognormal };
  Shape shape = Shape::kFixed;
  double first = 16;  // the value; the least; the median
  double second = 0;  // -; the most; sigma of the logarithm
  double most = 1e6;  // lognormal only: larger values become this one
};

enum class Call { kGenerate, kEmbed, kLive };

// Of Open Inference requests: what the tensor that carries the input is called, and what it looks
// like. Tensors that are not BYTES hold random bytes, which suffices to drive servers of other
// models (Triton, OVMS).
struct InputTensor {
  std::string name = "text_input", datatype = "BYTES";
  std::vector<int64_t> shape = {1};
};

struct RequestKind {
  std::string name, model;
  Call call = Call::kGenerate;
  double weight = 1;
  Distribution prompt_words, answer_tokens;
  std::optional<absl::Duration>
      deadline;                 // from the intended time; DEADLINE_EXCEEDED is its outcome
  int cancel_after = 0;         // the client cancels after so many messages; 0: never
  absl::Duration reader_delay;  // the client waits so long before it reads on
  InputTensor input;
};

// Requests per second, or so many times the capacity that the last closed phase measured ("2x").
struct Rate {
  double value = 0;
  bool times_capacity = false;
};

struct ReplayedArrival {
  int64_t offset_us = 0;
  int kind = -1;  // index into Scenario::kinds; -1: drawn by weight
};

struct Arrivals {
  enum class Process { kPoisson, kConstant, kBurst, kReplay, kClosed };
  Process process = Process::kPoisson;
  Rate rate;                            // poisson, constant; burst: between bursts
  Rate peak;                            // burst
  absl::Duration every, length;         // burst: of `length`, one at the start of each `every`
  std::vector<ReplayedArrival> replay;  // ascending
  int clients = 0;                      // closed
};

struct Phase {
  std::string name;
  absl::Duration duration;
  Arrivals arrivals;
  bool warm_up = false;  // shown, but not in the totals
  bool drain = false;    // the next phase begins when all requests of this one have ended
};

// What a request must keep to in order to count as good; absent: anything.
struct Slo {
  std::optional<absl::Duration> first_token, inter_token, end_to_end;
};

struct Scenario {
  std::string name;
  bool open_inference = false;  // else assay.v1
  uint64_t seed = 1;
  int channels = 4;                            // connections
  absl::Duration timeout = absl::Seconds(60);  // of requests without a deadline of their own
  absl::Duration max_lateness =
      absl::Milliseconds(10);  // p99 of the generator's own, above: invalid
  int max_open = 20000;        // requests beyond it are not sent, and the figures are invalid
  Slo slo;
  std::vector<RequestKind> kinds;
  std::vector<Phase> phases;
};

// `origin` is the file's name for messages. A replay file is named relative to `folder`.
// InvalidArgument: "FILE:LINE: ..." for what is not YAML, unknown keys, values out of range;
// NotFound: no file.
absl::StatusOr<Scenario> ParseScenario(std::string_view text, const std::string& origin,
                                       const std::string& folder);
absl::StatusOr<Scenario> ReadScenario(const std::string& path);

// Lines "SECONDS [KIND]", ascending; # begins a comment. InvalidArgument with file and line.
absl::StatusOr<std::vector<ReplayedArrival>> ParseArrivals(std::string_view text,
                                                           const std::string& origin,
                                                           const std::vector<RequestKind>& kinds);

// All rates, the clients of closed loops and the speed of replays, times `factor`.
void Scale(Scenario& scenario, double factor);

}  // namespace assay::load
