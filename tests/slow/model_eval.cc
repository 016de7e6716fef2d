// Perplexity of a decoder or embeddings of an encoder, by the engine's own families and kernels.
//
//   model_eval perplexity MODEL TEXT [scheme=f32] [mode=a16] [kv=f32] [context=512] [windows=0]
//              [ids=FILE]
//     Non-overlapping windows of `context` tokens, no BOS, every position but the first scored;
//     `windows` of them (0 = all that are full). ids=FILE receives the token ids as JSON.
//   model_eval evaluation MODEL TEXT
//     The token ids on which an admission judges this model (TEXT "-": the bundled text), as JSON.
//   model_eval embed MODEL SENTENCES [scheme=f32] [mode=a16]
//     One JSON array per line of SENTENCES.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "base/thread_pool.h"
#include "engine/lifecycle/evaluation.h"
#include "engine/model/model.h"
#include "engine/model/tokenizer.h"

namespace assay {
namespace {

using Options = std::map<std::string, std::string>;

struct Loaded {
  std::unique_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<const Model> model;
};

absl::StatusOr<Loaded> Load(const std::string& path, Options& options) {
  ASSIGN_OR_RETURN(const auto checkpoint, OpenCheckpoint(path));
  Loaded loaded;
  ASSIGN_OR_RETURN(loaded.tokenizer, MakeTokenizer(checkpoint->tokenizer()));
  const auto mode = FindActivationMode(options["mode"]);
  if (!mode) return absl::InvalidArgumentError(absl::StrCat("no such mode: ", options["mode"]));
  ASSIGN_OR_RETURN(loaded.model,
                   BuildUniform(*checkpoint, options["scheme"], {.activation = *mode}));
  return loaded;
}

absl::StatusOr<std::string> ReadText(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read: ", path));
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// -log softmax(logits)[target] in nats, in float64.
double NegativeLogLikelihood(std::span<const float> logits, int32_t target) {
  const double top = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float l : logits) sum += std::exp(l - top);
  return std::log(sum) + top - logits[target];
}

class Evaluation {
 public:
  explicit Evaluation(const Model& model) : model_(model) {}

  // One forward pass into `out`; the arena is made for it.
  absl::Status Forward(const ForwardBatch& batch, KvPool* kv, Shape shape,
                       std::vector<float>& out) {
    const auto rows = static_cast<int64_t>(batch.tokens.size());
    ASSIGN_OR_RETURN(Arena arena,
                     Arena::Create(CpuDevice(), model_.scratch_bytes(rows, shape[0], rows)));
    ComputeContext context{pool, arena};
    out.resize(shape.elements());
    return model_.Forward(
        {.batch = batch,
         .kv = kv,
         .out = {reinterpret_cast<std::byte*>(out.data()), shape, DType::kF32, &CpuDevice()}},
        context);
  }
  ThreadPool pool{{}};

 private:
  const Model& model_;
};

absl::Status Perplexity(const std::string& path, const std::string& text_path, Options& options) {
  ASSIGN_OR_RETURN(const Loaded loaded, Load(path, options));
  ASSIGN_OR_RETURN(const std::string text, ReadText(text_path));
  ASSIGN_OR_RETURN(const std::vector<int32_t> ids, loaded.tokenizer->Encode(text, false, false));
  if (!options["ids"].empty()) std::ofstream(options["ids"]) << nlohmann::json(ids).dump();
  const Model& model = *loaded.model;
  int context = 0, windows = 0;
  if (!absl::SimpleAtoi(options["context"], &context) || context < 2 ||
      !absl::SimpleAtoi(options["windows"], &windows)) {
    return absl::InvalidArgumentError("context and windows must be numbers, context at least 2");
  }
  const int full = static_cast<int>(ids.size()) / context;
  windows = windows > 0 ? std::min(windows, full) : full;
  const int num_blocks = (context + KvPool::kBlockTokens - 1) / KvPool::kBlockTokens;
  const DType kv_type = options["kv"] == "f16" ? DType::kF16 : DType::kF32;
  ASSIGN_OR_RETURN(KvPool kv, KvPool::Create(CpuDevice(), model.kv_layout(kv_type), num_blocks));
  std::vector<int32_t> blocks(num_blocks), rows(context);
  std::iota(blocks.begin(), blocks.end(), 0);
  std::iota(rows.begin(), rows.end(), 0);
  Evaluation evaluation(model);
  std::vector<float> logits;
  std::vector<double> losses(context - 1);
  double total = 0;
  const auto start = std::chrono::steady_clock::now();
  for (int w = 0; w < windows; ++w) {
    const std::span<const int32_t> tokens(ids.data() + w * context, context);
    const SequenceSpan span[] = {{.first_row = 0, .num_rows = context, .blocks = blocks}};
    RETURN_IF_ERROR(evaluation.Forward({.tokens = tokens, .sequences = span, .logit_rows = rows},
                                       &kv, {context, model.spec().vocab}, logits));
    const auto vocab = static_cast<size_t>(model.spec().vocab);
    evaluation.pool.ParallelFor(context - 1, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        losses[i] = NegativeLogLikelihood({logits.data() + i * vocab, vocab}, tokens[i + 1]);
      }
    });
    total += std::accumulate(losses.begin(), losses.end(), 0.0);
    std::fprintf(stderr, "\rwindow %d/%d", w + 1, windows);
  }
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  const int64_t scored = int64_t{windows} * (context - 1);
  const nlohmann::json result = {{"tokens", ids.size()},
                                 {"windows", windows},
                                 {"scored", scored},
                                 {"nll_nats", total / static_cast<double>(scored)},
                                 {"perplexity", std::exp(total / static_cast<double>(scored))},
                                 {"seconds", took.count()}};
  std::fprintf(stderr, "\n");
  std::printf("%s\n", result.dump().c_str());
  return absl::OkStatus();
}

absl::Status Embed(const std::string& path, const std::string& text_path, Options& options) {
  ASSIGN_OR_RETURN(const Loaded loaded, Load(path, options));
  std::ifstream file(text_path);
  if (!file) return absl::NotFoundError(absl::StrCat("cannot read: ", text_path));
  const ModelSpec& spec = loaded.model->spec();
  Evaluation evaluation(*loaded.model);
  std::vector<std::string> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(line);
  constexpr size_t kBatch = 16;
  for (size_t at = 0; at < lines.size(); at += kBatch) {
    std::vector<int32_t> tokens;
    std::vector<SequenceSpan> spans;
    for (size_t i = at; i < std::min(lines.size(), at + kBatch); ++i) {
      ASSIGN_OR_RETURN(const auto ids, loaded.tokenizer->Encode(lines[i], true, false));
      if (ids.size() > static_cast<size_t>(spec.max_context)) {
        return absl::InvalidArgumentError(absl::StrCat("line too long: tokens=", ids.size()));
      }
      spans.push_back({.first_row = static_cast<int32_t>(tokens.size()),
                       .num_rows = static_cast<int32_t>(ids.size())});
      tokens.insert(tokens.end(), ids.begin(), ids.end());
    }
    std::vector<float> out;
    RETURN_IF_ERROR(evaluation.Forward({.tokens = tokens, .sequences = spans}, nullptr,
                                       {static_cast<int64_t>(spans.size()), spec.hidden}, out));
    for (size_t i = 0; i < spans.size(); ++i) {
      const std::vector<float> row(out.begin() + i * spec.hidden,
                                   out.begin() + (i + 1) * spec.hidden);
      std::printf("%s\n", nlohmann::json(row).dump().c_str());
    }
  }
  return absl::OkStatus();
}

absl::Status PrintEvaluation(const std::string& path, const std::string& text_path) {
  ASSIGN_OR_RETURN(const auto checkpoint, OpenCheckpoint(path));
  ASSIGN_OR_RETURN(const auto tokenizer, MakeTokenizer(checkpoint->tokenizer()));
  ASSIGN_OR_RETURN(const ModelFamily* family, FamilyOf(*checkpoint));
  ASSIGN_OR_RETURN(const ModelSpec spec, family->parse(*checkpoint));
  std::string text(BundledEvaluationText());
  if (text_path != "-") {
    ASSIGN_OR_RETURN(text, ReadText(text_path));
  }
  ASSIGN_OR_RETURN(const EvaluationSet set,
                   MakeEvaluationSet(text, text_path, tokenizer.get(), spec, {}));
  std::printf("%s\n", nlohmann::json(set.documents).dump().c_str());
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Options options = {{"scheme", "f32"},  {"mode", "a16"},  {"kv", "f32"},
                     {"context", "512"}, {"windows", "0"}, {"ids", ""}};
  for (int i = 4; i < argc; ++i) {
    const std::string option = argv[i];
    const size_t equals = option.find('=');
    if (equals == std::string::npos || !options.contains(option.substr(0, equals))) {
      std::fprintf(stderr, "model_eval: unknown option: %s\n", argv[i]);
      return 1;
    }
    options[option.substr(0, equals)] = option.substr(equals + 1);
  }
  const std::string command = argc > 3 ? argv[1] : "";
  absl::Status status;
  if (command == "perplexity") {
    status = Perplexity(argv[2], argv[3], options);
  } else if (command == "evaluation") {
    status = PrintEvaluation(argv[2], argv[3]);
  } else if (command == "embed") {
    status = Embed(argv[2], argv[3], options);
  } else {
    std::fprintf(stderr,
                 "usage: model_eval perplexity|evaluation|embed MODEL TEXT [key=value ...]\n");
    return 1;
  }
  if (status.ok()) return 0;
  std::fprintf(stderr, "model_eval: %s\n", status.ToString().c_str());
  return 2;
}

}  // namespace
}  // namespace assay

int main(int argc, char** argv) { return assay::Main(argc, argv); }
