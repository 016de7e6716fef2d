// Models without weights, for the engines' tests.
//
// As a decoder, FakeModel keeps (token, position) in the KV pool in place of keys, reads the whole
// prefix of every wanted row back through the block table, and makes the logits from a hash of it:
// pseudo-random, different for every prefix, the same for the same prefix. A block that was given
// to two sequences, evicted too early or mixed up, is reported as Internal, as is a table that does
// not cover the rows, or a batch outside what scratch_bytes announced. As an encoder it returns
// [first token, sum of tokens, sum of token types, number of tokens].
//
// It can fail or return NaN logits at a chosen step, hold steps at a gate, and call a hook before
// each step (on the loop thread).
#pragma once
#include <atomic>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/mutex.h"
#include "engine/model/model.h"

namespace assay {

class FakeModel final : public Model {
 public:
  struct Options {
    int vocab = 64;
    int max_context = 256;
    ModelTask task = ModelTask::kGenerate;
    int fail_at_step = -1;  // 0 = the first
    int nan_at_step = -1;   // the first row of logits of that step
    std::function<void(int step, const ForwardBatch&)> before_step;
  };
  explicit FakeModel(Options options) : options_(std::move(options)) {
    spec_.family = spec_.architecture = "fake";
    spec_.task = options_.task;
    spec_.layers = spec_.kv_heads = spec_.heads = 1;
    spec_.head_dim = spec_.hidden = 4;
    spec_.vocab = options_.vocab;
    spec_.max_context = options_.max_context;
    spec_.num_labels = 4;
    spec_.type_vocab = 2;
  }

  const ModelSpec& spec() const override { return spec_; }
  const std::vector<LinearSlot>& slots() const override { return slots_; }
  const LinearMap& linears() const override { return linears_; }
  size_t scratch_bytes(int64_t rows, int64_t logit_rows, int64_t context) const override {
    max_rows_ = rows;
    max_logit_rows_ = logit_rows;
    max_context_ = context;
    return static_cast<size_t>(rows) * 64;
  }
  size_t other_weight_bytes() const override { return 0; }
  int steps() const { return step_; }

  absl::Status Forward(const ForwardArgs& args, ComputeContext& context) const override {
    const int step = step_++;
    if (options_.before_step) options_.before_step(step, args.batch);
    if (step == options_.fail_at_step) return absl::InternalError("the fake was told to fail");
    if (static_cast<int64_t>(args.batch.tokens.size()) > max_rows_ ||
        static_cast<int64_t>(args.batch.logit_rows.size()) > max_logit_rows_)
      return absl::InternalError("the batch is larger than was announced");
    if (context.scratch.TryAllocate<std::byte>(args.batch.tokens.size() * 64) == nullptr)
      return absl::InternalError("the scratch is too small");
    if (spec_.task != ModelTask::kGenerate) return Encode(args);
    for (const SequenceSpan& s : args.batch.sequences) RETURN_IF_ERROR(Write(args, s));
    int row_of_logits = 0;
    for (const SequenceSpan& s : args.batch.sequences) {
      const auto& rows = args.batch.logit_rows;
      while (row_of_logits < static_cast<int>(rows.size()) &&
             rows[row_of_logits] < s.first_row + s.num_rows) {
        const int position = s.start_position + rows[row_of_logits] - s.first_row;
        float* logits = args.out.as<float>() + int64_t{row_of_logits} * spec_.vocab;
        RETURN_IF_ERROR(FillLogits(*args.kv, s, position, logits));
        if (step == options_.nan_at_step && row_of_logits == 0)
          logits[spec_.vocab / 2] = std::numeric_limits<float>::quiet_NaN();
        ++row_of_logits;
      }
    }
    if (row_of_logits != static_cast<int>(args.batch.logit_rows.size()))
      return absl::InternalError("logit_rows are not ascending within the batch");
    return absl::OkStatus();
  }

 private:
  struct Entry {
    int32_t token, position;
  };

  static std::byte* At(KvPool& kv, const SequenceSpan& s, int position) {
    return kv.keys(0, s.blocks[position / KvPool::kBlockTokens], 0) +
           sizeof(Entry) * (position % KvPool::kBlockTokens);
  }

  absl::Status Write(const ForwardArgs& args, const SequenceSpan& s) const {
    const int end = s.start_position + s.num_rows;
    if (end > max_context_)
      return absl::InternalError(absl::StrCat("a position beyond the context: ", end - 1));
    if (static_cast<int>(s.blocks.size()) !=
        (end + KvPool::kBlockTokens - 1) / KvPool::kBlockTokens)
      return absl::InternalError(
          absl::StrCat("blocks do not cover the rows: blocks=", s.blocks.size(), " end=", end));
    for (int i = 0; i < s.num_rows; ++i) {
      const Entry entry{args.batch.tokens[s.first_row + i], s.start_position + i};
      std::memcpy(At(*args.kv, s, entry.position), &entry, sizeof(entry));
    }
    return absl::OkStatus();
  }

  absl::Status FillLogits(KvPool& kv, const SequenceSpan& s, int position, float* logits) const {
    uint64_t hash = 0x243f6a8885a308d3u;
    for (int p = 0; p <= position; ++p) {
      Entry entry;
      std::memcpy(&entry, At(kv, s, p), sizeof(entry));
      if (entry.position != p)
        return absl::InternalError(
            absl::StrCat("KV cache corrupt: position ", p, " holds ", entry.position));
      hash = Mix(hash ^ static_cast<uint32_t>(entry.token));
    }
    for (int v = 0; v < spec_.vocab; ++v)  // uniform in [-4, 4)
      logits[v] = static_cast<float>(Mix(hash + v) >> 40) * 0x1p-21f - 4.0f;
    return absl::OkStatus();
  }

  absl::Status Encode(const ForwardArgs& args) const {
    float* out = args.out.as<float>();
    for (const SequenceSpan& s : args.batch.sequences) {
      out[0] = static_cast<float>(args.batch.tokens[s.first_row]);
      out[1] = out[2] = 0;
      for (int i = s.first_row; i < s.first_row + s.num_rows; ++i) {
        out[1] += static_cast<float>(args.batch.tokens[i]);
        if (!args.batch.token_types.empty())
          out[2] += static_cast<float>(args.batch.token_types[i]);
      }
      out[3] = static_cast<float>(s.num_rows);
      out += 4;
    }
    return absl::OkStatus();
  }

  static uint64_t Mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
  }

  const Options options_;
  ModelSpec spec_;
  const std::vector<LinearSlot> slots_;
  const LinearMap linears_;
  mutable std::atomic<int> step_{0};
  mutable int64_t max_rows_ = 0, max_logit_rows_ = 0, max_context_ = 0;  // set before the loop runs
};

// Blocks whoever passes until it is opened.
class StepGate {
 public:
  void Open() {
    MutexLock lock(mu_);
    open_ = true;
    changed_.NotifyAll();
  }
  void Pass() {
    MutexLock lock(mu_);
    ++arrived_;
    changed_.NotifyAll();
    while (!open_) changed_.Wait(mu_);
  }
  void WaitForArrival() {
    MutexLock lock(mu_);
    while (arrived_ == 0) changed_.Wait(mu_);
  }

 private:
  Mutex mu_;
  CondVar changed_;
  int arrived_ ABSL_GUARDED_BY(mu_) = 0;
  bool open_ ABSL_GUARDED_BY(mu_) = false;
};

}  // namespace assay
