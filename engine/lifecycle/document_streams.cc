#include "engine/lifecycle/document_streams.h"

#include <algorithm>

namespace assay {

ModelPass::Size PassSize(const ModelSpec& spec, const EvaluationSet& set,
                         const KvFormat& kv_format) {
  size_t most = 1;
  for (const auto& document : set.documents) most = std::max(most, document.size());
  const auto longest = static_cast<int>(most);
  if (spec.task == ModelTask::kGenerate) {
    return {.sequences = 1,
            .context = longest,
            .rows = std::min(kChunkRows, longest),
            .out_rows = std::min(kChunkRows, longest),
            .kv_format = kv_format};
  }
  return {.sequences = kEncoderSequences,
          .context = longest,
          .rows = int64_t{kEncoderSequences} * longest,
          .out_rows = kEncoderSequences,
          .kv_format = kv_format};
}

DocumentStreams::DocumentStreams(const ModelSpec& spec, const EvaluationSet& set,
                                 const Extent& extent)
    : layers_(spec.layers),
      hidden_(spec.hidden),
      decoder_(spec.task == ModelTask::kGenerate),
      size_(PassSize(spec, set, DType::kF32)) {
  for (size_t d = 0; d < std::min(set.documents.size(), extent.documents); ++d) {
    const std::span<const int32_t> document = set.documents[d];
    tokens_.push_back(decoder_ ? document.first(std::min(document.size(), extent.tokens))
                               : document);
    values_.emplace_back(tokens_.back().size() * static_cast<size_t>(hidden_));
  }
}

ModelPass::Size DocumentStreams::pass_size(int layer) const {
  ModelPass::Size size = size_;
  if (!decoder_) return size;
  size.first_layer = std::min(layer, layers_ - 1);
  size.layers = 1;
  if (layer < layers_) size.out_rows = 0;
  return size;
}

MutableView DocumentStreams::StreamOf(size_t document, size_t start, size_t rows) {
  float* at = values_[document].data() + start * static_cast<size_t>(hidden_);
  return {reinterpret_cast<std::byte*>(at),
          {static_cast<int64_t>(rows), hidden_},
          DType::kF32,
          &CpuDevice()};
}

absl::Status DocumentStreams::Pass(ModelPass& pass, int layer, const LinearObserver* observer) {
  const LayerPart part{.first = layer, .end = layer + 1, .stream = {}};
  return decoder_ ? PassDecoder(pass, part, observer) : PassEncoder(pass, part, observer);
}

absl::Status DocumentStreams::PassDecoder(ModelPass& pass, const LayerPart& part,
                                          const LinearObserver* observer) {
  for (size_t d = 0; d < tokens_.size(); ++d) {
    for (size_t start = 0; start < tokens_[d].size(); start += kChunkRows) {
      const size_t rows = std::min<size_t>(kChunkRows, tokens_[d].size() - start);
      const LayerPart here{part.first, part.end, StreamOf(d, start, rows)};
      const ModelPass::Span span{0, static_cast<int>(start), tokens_[d].subspan(start, rows)};
      RETURN_IF_ERROR(
          pass.Forward(std::span(&span, 1), false, d == 0 ? observer : nullptr, &here).status());
    }
  }
  return absl::OkStatus();
}

absl::Status DocumentStreams::PassEncoder(ModelPass& pass, const LayerPart& part,
                                          const LinearObserver* observer) {
  std::vector<float> stream;  // of the sequences of one pass
  for (size_t begin = 0; begin < tokens_.size(); begin += kEncoderSequences) {
    const size_t end = std::min<size_t>(begin + kEncoderSequences, tokens_.size());
    std::vector<ModelPass::Span> spans;
    stream.clear();
    for (size_t d = begin; d < end; ++d) {
      spans.push_back({static_cast<int>(d - begin), 0, tokens_[d]});
      stream.insert(stream.end(), values_[d].begin(), values_[d].end());
    }
    const auto rows = static_cast<int64_t>(stream.size()) / hidden_;
    const LayerPart here{
        part.first,
        part.end,
        {reinterpret_cast<std::byte*>(stream.data()), {rows, hidden_}, DType::kF32, &CpuDevice()}};
    ASSIGN_OR_RETURN(const std::span<const float> out,
                     pass.Forward(spans, true, begin == 0 ? observer : nullptr, &here));
    const bool top = part.end == layers_;
    const std::span<const float> from = top ? out : std::span<const float>(stream);
    size_t at = 0;
    for (size_t d = begin; d < end; ++d) {
      const size_t count = top ? static_cast<size_t>(pass.out_columns()) : values_[d].size();
      const auto first = from.begin() + static_cast<ptrdiff_t>(at);
      values_[d].assign(first, first + static_cast<ptrdiff_t>(count));
      at += count;
    }
  }
  return absl::OkStatus();
}

absl::Status DocumentStreams::ToHeadInput(ModelPass& pass) {
  for (size_t d = 0; d < tokens_.size(); ++d) {
    for (size_t start = 0; start < tokens_[d].size(); start += kChunkRows) {
      const size_t rows = std::min<size_t>(kChunkRows, tokens_[d].size() - start);
      const LayerPart here{layers_, layers_, StreamOf(d, start, rows)};
      const ModelPass::Span span{0, static_cast<int>(start), tokens_[d].subspan(start, rows)};
      const auto width = static_cast<size_t>(hidden_);
      RETURN_IF_ERROR(pass.ForwardToHead(std::span(&span, 1), nullptr,
                                         std::span(values_[d]).subspan(start * width, rows * width),
                                         &here));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<std::span<const float>> DocumentStreams::Logits(ModelPass& pass, size_t document,
                                                               int start, int rows) {
  const auto from = static_cast<size_t>(start), count = static_cast<size_t>(rows);
  const LayerPart here{layers_, layers_, StreamOf(document, from, count)};
  const ModelPass::Span span{0, start, tokens_[document].subspan(from, count)};
  return pass.Forward(std::span(&span, 1), true, nullptr, &here);
}

}  // namespace assay
