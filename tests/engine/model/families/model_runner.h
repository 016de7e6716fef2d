// Runs a model in tests: owns the pool of threads, the KV pool with shuffled blocks, and an arena
// of exactly the size that the model asks for.
#pragma once
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "base/thread_pool.h"
#include "engine/model/model.h"

namespace assay {

class ModelRunner {
 public:
  // Room for `sequences` sequences of up to `positions` tokens.
  ModelRunner(const Model& model, int sequences, int positions, const KvFormat& kv = DType::kF32);

  struct Chunk {
    int sequence = 0;
    int start = 0;
    std::vector<int32_t> tokens;
    bool all_logits = true;  // else of the last token only
    std::vector<int32_t> token_types;
  };
  // One forward pass over the chunks. Decoders: the logits asked for, in order; encoders: one row
  // per chunk. Fails the test on any error.
  std::vector<std::vector<float>> Forward(const std::vector<Chunk>& chunks);
  // The same with the status.
  absl::StatusOr<std::vector<std::vector<float>>> TryForward(const std::vector<Chunk>& chunks);

  const LinearObserver* observer = nullptr;

 private:
  const Model& model_;
  ThreadPool pool_{{.num_threads = 2}};
  std::unique_ptr<KvPool> kv_;
  std::vector<std::vector<int32_t>> blocks_;  // by sequence
};

// A path below the repository's root.
std::string RepositoryPath(const std::string& relative);

// Largest |a - b|; infinite when the sizes differ or either has a NaN.
double MaxDifference(const std::vector<float>& a, const std::vector<float>& b);

}  // namespace assay
