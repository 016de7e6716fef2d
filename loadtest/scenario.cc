#include "loadtest/scenario.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "loadtest/yaml_fields.h"

namespace assay::load {
namespace {

constexpr double kMostRate = 1e6;
constexpr int kMostLength = 1000000;

// What the readers of one file share.
struct File {
  std::string origin, folder;
  absl::Status& error;
};

void ReadDistribution(YamlFields& parent, const std::string& key, const File& file,
                      Distribution& out) {
  parent.Node(key, [&](const YAML::Node& node) {
    if (node.IsScalar()) {
      out.shape = Distribution::Shape::kFixed;
      return parent.Number(key, 1, kMostLength, out.first);
    }
    YamlFields fields(node, key, file.origin, file.error);
    if (fields.Has("median")) {
      out.shape = Distribution::Shape::kLognormal;
      fields.Number("median", 1, kMostLength, out.first);
      fields.Require("sigma");
      fields.Number("sigma", 0, 4, out.second);
      fields.Number("most", out.first, kMostLength, out.most);
    } else {
      out.shape = Distribution::Shape::kUniform;
      fields.Require("least");
      fields.Require("most");
      fields.Number("least", 1, kMostLength, out.first);
      fields.Number("most", out.first, kMostLength, out.second);
    }
    fields.End();
  });
}

void ReadRate(YamlFields& fields, const std::string& key, Rate& out) {
  std::string text;
  fields.Text(key, text);
  if (text.empty()) return;
  const bool relative = text.back() == 'x';
  double value = 0;
  if (!absl::SimpleAtod(text.substr(0, text.size() - (relative ? 1 : 0)), &value) ||
      !(value >= 0 && value <= kMostRate)) {
    return fields.Node(key, [&](const YAML::Node& node) {
      fields.Fail(node, absl::StrCat(key, ": expected requests per second from 0 to ", kMostRate,
                                     ", or '2x' of the capacity, found '", text, "'"));
    });
  }
  out = {value, relative};
}

void ReadBurst(const YAML::Node& node, const File& file, Arrivals& out) {
  YamlFields fields(node, "burst", file.origin, file.error);
  for (const char* key : {"rate", "peak", "every", "length"}) fields.Require(key);
  ReadRate(fields, "rate", out.rate);
  ReadRate(fields, "peak", out.peak);
  fields.Duration("every", out.every);
  fields.Duration("length", out.length);
  if (fields.ok() && out.length > out.every) {
    fields.Fail(node, "burst: length is longer than every");
  }
  fields.End();
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (!in || !(text << in.rdbuf())) {
    return absl::NotFoundError(absl::StrCat("cannot read '", path, "'"));
  }
  return text.str();
}

void ReadReplay(YamlFields& fields, const YAML::Node& node, const File& file,
                const Scenario& scenario, Phase& phase) {
  std::string name;
  fields.Text("replay", name);
  if (!fields.ok()) return;
  const std::string path = (std::filesystem::path(file.folder) / name).string();
  absl::StatusOr<std::string> text = ReadFile(path);
  if (!text.ok()) return fields.Fail(node, absl::StrCat("replay: ", text.status().message()));
  auto arrivals = ParseArrivals(*text, path, scenario.kinds);
  if (!arrivals.ok()) {
    file.error = arrivals.status();
    return;
  }
  phase.arrivals.replay = *std::move(arrivals);
  // Without `seconds` the phase lasts until its last arrival.
  phase.duration = absl::Microseconds(phase.arrivals.replay.back().offset_us + 1);
}

void ReadArrivals(const YAML::Node& node, const File& file, const Scenario& scenario,
                  Phase& phase) {
  using Process = Arrivals::Process;
  YamlFields fields(node, "arrivals", file.origin, file.error);
  if (!fields.ok()) return;
  Arrivals& out = phase.arrivals;
  static const std::pair<const char*, Process> kProcesses[] = {{"poisson", Process::kPoisson},
                                                               {"constant", Process::kConstant},
                                                               {"burst", Process::kBurst},
                                                               {"replay", Process::kReplay},
                                                               {"closed", Process::kClosed}};
  int given = 0;
  for (const auto& [key, process] : kProcesses) {
    if (!fields.Has(key)) continue;
    ++given;
    out.process = process;
  }
  if (given <= 1) {
    ReadRate(fields, "poisson", out.rate);
    ReadRate(fields, "constant", out.rate);
    fields.Node("burst", [&](const YAML::Node& burst) { ReadBurst(burst, file, out); });
    fields.Node("replay",
                [&](const YAML::Node& at) { ReadReplay(fields, at, file, scenario, phase); });
    fields.Whole("closed", 1, 10000, out.clients);
    fields.End();
  }
  if (given != 1) {
    fields.Fail(node, "arrivals: expected one of poisson, constant, burst, replay, closed");
  }
}

void ReadPhase(const YAML::Node& node, const File& file, Scenario& scenario) {
  YamlFields fields(node, "phase", file.origin, file.error);
  Phase phase;
  phase.name = absl::StrCat("phase ", scenario.phases.size() + 1);
  fields.Text("name", phase.name);
  fields.Require("arrivals");
  fields.Node("arrivals", [&](const YAML::Node& at) { ReadArrivals(at, file, scenario, phase); });
  if (phase.arrivals.process != Arrivals::Process::kReplay) fields.Require("seconds");
  double seconds = absl::ToDoubleSeconds(phase.duration);
  fields.Number("seconds", 0.001, 86400, seconds);
  phase.duration = absl::Seconds(seconds);
  fields.Bool("warm_up", phase.warm_up);
  fields.Bool("drain", phase.drain);
  for (const Phase& other : scenario.phases) {
    if (other.name == phase.name) {
      fields.Fail(node, absl::StrCat("phase: the name '", phase.name, "' is used twice"));
    }
  }
  fields.End();
  scenario.phases.push_back(std::move(phase));
}

void ReadInput(const YAML::Node& node, const File& file, InputTensor& out) {
  static const char* const kTypes[] = {"BYTES", "BOOL",  "INT8",   "INT16",  "INT32",
                                       "INT64", "UINT8", "UINT16", "UINT32", "UINT64",
                                       "FP16",  "FP32",  "FP64",   "BF16"};
  YamlFields fields(node, "input", file.origin, file.error);
  fields.Text("name", out.name);
  fields.Text("datatype", out.datatype);
  if (std::find(std::begin(kTypes), std::end(kTypes), out.datatype) == std::end(kTypes)) {
    fields.Fail(node, absl::StrCat("input: unknown datatype '", out.datatype, "'"));
  }
  fields.Node("shape", [&](const YAML::Node& shape) {
    out.shape.clear();
    double elements = 1;
    for (const YAML::Node& entry : shape) {
      int64_t size = 0;
      if (!entry.IsScalar() || !absl::SimpleAtoi(entry.Scalar(), &size) || size < 1) {
        return fields.Fail(entry, "shape: expected a list of whole numbers above 0");
      }
      out.shape.push_back(size);
      elements *= static_cast<double>(size);
    }
    if (out.shape.empty() || elements > 1 << 24 || (out.datatype == "BYTES" && elements != 1)) {
      fields.Fail(shape, "shape: expected 1 to 16777216 elements, and one of BYTES");
    }
  });
  fields.End();
}

void ReadKind(const YAML::Node& node, const File& file, Scenario& scenario) {
  YamlFields fields(node, "request", file.origin, file.error);
  RequestKind kind;
  kind.name = absl::StrCat("request ", scenario.kinds.size() + 1);
  std::string call = "generate";
  fields.Text("name", kind.name);
  fields.Text("call", call);
  if (call == "generate") {
    kind.call = Call::kGenerate;
  } else if (call == "embed") {
    kind.call = Call::kEmbed;
  } else if (call == "live") {
    kind.call = Call::kLive;
  } else {
    fields.Fail(node, absl::StrCat("call: expected generate, embed or live, found '", call, "'"));
  }
  if (kind.call != Call::kLive) fields.Require("model");
  fields.Text("model", kind.model);
  fields.Number("weight", 1e-6, 1e6, kind.weight);
  ReadDistribution(fields, "prompt_words", file, kind.prompt_words);
  fields.Duration("deadline", kind.deadline);
  fields.Node("input", [&](const YAML::Node& at) {
    ReadInput(at, file, kind.input);
    if (!scenario.open_inference) fields.Fail(at, "input: needs 'protocol: oip'");
  });
  if (kind.call == Call::kGenerate) {  // elsewhere they are unknown keys
    ReadDistribution(fields, "answer_tokens", file, kind.answer_tokens);
    fields.Whole("cancel_after", 1, kMostLength, kind.cancel_after);
    fields.Duration("reader_delay", kind.reader_delay);
  }
  for (const RequestKind& other : scenario.kinds) {
    if (other.name == kind.name) {
      fields.Fail(node, absl::StrCat("request: the name '", kind.name, "' is used twice"));
    }
  }
  fields.End();
  scenario.kinds.push_back(std::move(kind));
}

void ReadList(YamlFields& fields, const std::string& key,
              const std::function<void(const YAML::Node&)>& read) {
  fields.Require(key);
  fields.Node(key, [&](const YAML::Node& list) {
    if (!list.IsSequence() || list.size() == 0) {
      return fields.Fail(list, absl::StrCat(key, ": expected a list with one entry or more"));
    }
    for (const YAML::Node& entry : list) read(entry);
  });
}

void ReadRoot(const YAML::Node& root, const File& file, Scenario& out) {
  YamlFields fields(root, "scenario", file.origin, file.error);
  std::string protocol = "assay";
  fields.Text("name", out.name);
  fields.Text("protocol", protocol);
  if (protocol != "assay" && protocol != "oip") {
    fields.Fail(root, absl::StrCat("protocol: expected assay or oip, found '", protocol, "'"));
  }
  out.open_inference = protocol == "oip";
  int64_t seed = 1;
  fields.Whole("seed", 0, int64_t{1} << 62, seed);
  out.seed = static_cast<uint64_t>(seed);
  fields.Whole("channels", 1, 256, out.channels);
  fields.Whole("max_open", 1, 1000000, out.max_open);
  fields.Duration("timeout", out.timeout);
  fields.Duration("max_lateness", out.max_lateness);
  fields.Node("slo", [&](const YAML::Node& node) {
    YamlFields slo(node, "slo", file.origin, file.error);
    slo.Duration("ttft", out.slo.first_token);
    slo.Duration("itl", out.slo.inter_token);
    slo.Duration("e2e", out.slo.end_to_end);
    slo.End();
  });
  // Requests first: replayed arrivals name them.
  ReadList(fields, "requests", [&](const YAML::Node& node) { ReadKind(node, file, out); });
  ReadList(fields, "phases", [&](const YAML::Node& node) { ReadPhase(node, file, out); });
  fields.End();
}

}  // namespace

absl::StatusOr<Scenario> ParseScenario(std::string_view text, const std::string& origin,
                                       const std::string& folder) {
  Scenario out;
  out.name = std::filesystem::path(origin).stem().string();
  absl::Status error;
  try {
    const int documents = CountYamlDocuments(std::string(text));
    if (documents != 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          origin, ":1: expected one YAML document, found ", documents < 2 ? "none" : "another"));
    }
    ReadRoot(YAML::Load(std::string(text)), {origin, folder, error}, out);
  } catch (const YAML::Exception& e) {
    return absl::InvalidArgumentError(
        absl::StrCat(origin, ":", std::max(e.mark.line, 0) + 1, ": not YAML: ", e.msg));
  }
  RETURN_IF_ERROR(error);
  return out;
}

absl::StatusOr<Scenario> ReadScenario(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseScenario(text, path, std::filesystem::path(path).parent_path().string());
}

absl::StatusOr<std::vector<ReplayedArrival>> ParseArrivals(std::string_view text,
                                                           const std::string& origin,
                                                           const std::vector<RequestKind>& kinds) {
  std::vector<ReplayedArrival> out;
  int number = 0;
  const auto fail = [&](const std::string& message) {
    return absl::InvalidArgumentError(absl::StrCat(origin, ":", number, ": ", message));
  };
  for (const absl::string_view line :
       absl::StrSplit(absl::string_view(text.data(), text.size()), '\n')) {
    ++number;
    const std::vector<std::string> words = absl::StrSplit(
        line.substr(0, line.find('#')), absl::ByAnyChar(" \t\r,"), absl::SkipEmpty());
    if (words.empty()) continue;
    double seconds = 0;
    if (!absl::SimpleAtod(words[0], &seconds) || !(seconds >= 0 && seconds <= 86400) ||
        words.size() > 2) {
      return fail(absl::StrCat("expected SECONDS [REQUEST], found '", words[0], "'"));
    }
    ReplayedArrival arrival{std::llround(seconds * 1e6), -1};
    if (!out.empty() && arrival.offset_us < out.back().offset_us) {
      return fail(absl::StrCat("arrivals must ascend: ", words[0], " is before the one above"));
    }
    if (words.size() == 2) {
      const auto it = std::find_if(kinds.begin(), kinds.end(),
                                   [&](const RequestKind& kind) { return kind.name == words[1]; });
      if (it == kinds.end()) return fail(absl::StrCat("no request is named '", words[1], "'"));
      arrival.kind = static_cast<int>(it - kinds.begin());
    }
    out.push_back(arrival);
  }
  if (out.empty()) return fail("no arrival in the file");
  return out;
}

void Scale(Scenario& scenario, double factor) {
  for (Phase& phase : scenario.phases) {
    Arrivals& arrivals = phase.arrivals;
    for (Rate* rate : {&arrivals.rate, &arrivals.peak}) {
      if (!rate->times_capacity) rate->value *= factor;  // the capacity scales itself
    }
    if (arrivals.process == Arrivals::Process::kClosed) {
      arrivals.clients = std::max(1, static_cast<int>(std::lround(arrivals.clients * factor)));
    }
    if (arrivals.process == Arrivals::Process::kReplay) {
      phase.duration /= factor;
      for (ReplayedArrival& arrival : arrivals.replay) {
        arrival.offset_us = std::llround(static_cast<double>(arrival.offset_us) / factor);
      }
    }
  }
}

}  // namespace assay::load
