// Documents of an evaluation set on their way up a model's stack: what flows between two layers is
// kept for all of them, so that the model may be taken up layer by layer. Layer by layer gives the
// same numbers as all at once, bit for bit: kernels are batch-invariant.
//
// Memory: 4 bytes x hidden for every token. Copies go on independently. One thread uses an object;
// the set outlives it.
#pragma once
#include <span>
#include <vector>

#include "engine/lifecycle/evaluation.h"
#include "engine/lifecycle/model_pass.h"

namespace assay {

inline constexpr int kChunkRows = 128;        // of one decoder pass: bounds the logits held at once
inline constexpr int kEncoderSequences = 16;  // of one encoder pass

// A pass over the set's documents: one decoder document, or kEncoderSequences at once.
ModelPass::Size PassSize(const ModelSpec& spec, const EvaluationSet& set,
                         const KvFormat& kv_format);

class DocumentStreams {
 public:
  // The first `documents` of the set; decoders: the first `tokens` of each.
  struct Extent {
    size_t documents = size_t{1} << 20, tokens = size_t{1} << 20;
  };
  DocumentStreams(const ModelSpec& spec, const EvaluationSet& set, const Extent& extent);

  // For passes through `layer` of a model; layer = layers: through its head.
  ModelPass::Size pass_size(int layer) const;
  // All documents through one layer. `observer`, or null, sees the first document (encoders: the
  // first kEncoderSequences).
  absl::Status Pass(ModelPass& pass, int layer, const LinearObserver* observer);
  // Decoders, above the last layer: what the output head is multiplied by takes the place of the
  // streams.
  absl::Status ToHeadInput(ModelPass& pass);
  // Decoders, above the last layer: logits [rows, vocab] of tokens [start, start + rows) of a
  // document, rows <= kChunkRows. Valid until the next call with this pass.
  absl::StatusOr<std::span<const float>> Logits(ModelPass& pass, size_t document, int start,
                                                int rows);

  size_t documents() const { return tokens_.size(); }
  // Decoders: the stream of a document [tokens, hidden]; encoders: its output, after the last
  // layer.
  std::vector<float>& values(size_t document) { return values_[document]; }

 private:
  absl::Status PassDecoder(ModelPass& pass, const LayerPart& part, const LinearObserver* observer);
  absl::Status PassEncoder(ModelPass& pass, const LayerPart& part, const LinearObserver* observer);
  // Rows [start, start + rows) of a document's stream.
  MutableView StreamOf(size_t document, size_t start, size_t rows);

  int layers_ = 0;
  int64_t hidden_ = 0;
  bool decoder_ = false;
  ModelPass::Size size_;
  std::vector<std::span<const int32_t>> tokens_;  // by document
  std::vector<std::vector<float>> values_;        // by document
};

}  // namespace assay
