// A BERT of random weights in memory, of any sizes: those that no file in the repository has.
#pragma once
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "engine/model/checkpoint.h"
#include "tests/support/random_tensor.h"

namespace assay {

struct BertSizes {
  int hidden = 40, heads = 2, ffn = 72, layers = 1, vocab = 50, positions = 150;
};

class RandomBert final : public Checkpoint {
 public:
  explicit RandomBert(const BertSizes& sizes) {
    config_ = {{"model_type", "bert"},
               {"hidden_size", sizes.hidden},
               {"num_attention_heads", sizes.heads},
               {"num_hidden_layers", sizes.layers},
               {"intermediate_size", sizes.ffn},
               {"vocab_size", sizes.vocab},
               {"max_position_embeddings", sizes.positions}};
    const int64_t hidden = sizes.hidden, ffn = sizes.ffn;
    Add("embeddings.word_embeddings.weight", {sizes.vocab, hidden}, 1);
    Add("embeddings.position_embeddings.weight", {sizes.positions, hidden}, 1);
    Add("embeddings.token_type_embeddings.weight", {2, hidden}, 1);
    AddNorm("embeddings.LayerNorm", hidden);
    for (int i = 0; i < sizes.layers; ++i) {
      const std::string layer = absl::StrCat("encoder.layer.", i, ".");
      for (const char* part : {"query", "key", "value"})
        AddDense(absl::StrCat(layer, "attention.self.", part), hidden, hidden);
      AddDense(layer + "attention.output.dense", hidden, hidden);
      AddNorm(layer + "attention.output.LayerNorm", hidden);
      AddDense(layer + "intermediate.dense", ffn, hidden);
      AddDense(layer + "output.dense", hidden, ffn);
      AddNorm(layer + "output.LayerNorm", hidden);
    }
    for (const auto& [name, values] : values_) tensors_.push_back(described_[name]);
  }

  std::string_view format() const override { return "safetensors"; }
  std::span<const CheckpointTensor> tensors() const override { return tensors_; }
  absl::StatusOr<const CheckpointTensor*> Find(std::string_view name) const override {
    const auto found = described_.find(std::string(name));
    if (found == described_.end())
      return absl::NotFoundError(absl::StrCat("no such tensor: ", std::string(name)));
    return &found->second;
  }
  absl::Status ReadRows(std::string_view name, int64_t row, int64_t rows,
                        std::span<float> out) const override {
    ASSIGN_OR_RETURN(const CheckpointTensor* const tensor, Find(name));
    const int64_t width = tensor->shape.elements() / tensor->shape[0];
    const std::vector<float>& all = values_.at(tensor->name);
    std::copy_n(all.begin() + row * width, rows * width, out.begin());
    return absl::OkStatus();
  }
  void DropResident(std::string_view) const override {}
  const nlohmann::json& config() const override { return config_; }
  const nlohmann::json& tokenizer() const override { return tokenizer_; }
  absl::StatusOr<std::string> ContentHash() const override { return std::string(64, '0'); }
  uint64_t file_bytes() const override { return 0; }

 private:
  void Add(const std::string& name, Shape shape, float stddev, float mean = 0) {
    std::vector<float> values = RandomNormal(shape.elements(), ++seed_, stddev);
    for (float& v : values) v += mean;
    values_[name] = std::move(values);
    described_[name] = {name, shape, "f32", static_cast<uint64_t>(4 * shape.elements())};
  }
  // Products of about the size of what enters them.
  void AddDense(const std::string& name, int64_t n, int64_t k) {
    Add(name + ".weight", {n, k}, 1.0f / std::sqrt(static_cast<float>(k)));
    Add(name + ".bias", {n}, 0.3f);
  }
  void AddNorm(const std::string& name, int64_t width) {
    Add(name + ".weight", {width}, 0.2f, 1.0f);
    Add(name + ".bias", {width}, 0.2f);
  }

  nlohmann::json config_, tokenizer_;
  std::map<std::string, std::vector<float>> values_;
  std::map<std::string, CheckpointTensor> described_;
  std::vector<CheckpointTensor> tensors_;
  uint64_t seed_ = 0;
};

}  // namespace assay
