#include "engine/model/families/forward_parts.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "base/thread_pool.h"
#include "quant/schemes/schemes.h"

namespace assay {

absl::Status CheckBatch(const ModelSpec& spec, const ForwardBatch& batch) {
  const auto rows = static_cast<int64_t>(batch.tokens.size());
  for (int64_t row = 0; row < rows; ++row) {
    if (batch.tokens[row] < 0 || batch.tokens[row] >= spec.vocab) {
      return absl::InvalidArgumentError(absl::StrCat("token id outside the vocabulary: row=", row,
                                                     " token=", batch.tokens[row],
                                                     " vocab=", spec.vocab));
    }
  }
  int64_t next = 0;
  for (const SequenceSpan& s : batch.sequences) {
    if (s.first_row != next || s.num_rows <= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("sequences must cover the rows in order: first_row=", s.first_row,
                       " num_rows=", s.num_rows, " expected first_row=", next));
    }
    next += s.num_rows;
    if (s.start_position < 0 ||
        int64_t{s.start_position} + s.num_rows > int64_t{spec.max_context}) {
      return absl::InvalidArgumentError(
          absl::StrCat("position outside the model's context: first=", s.start_position,
                       " rows=", s.num_rows, " max_context=", spec.max_context));
    }
  }
  if (next != rows) {
    return absl::InvalidArgumentError(
        absl::StrCat("sequences must cover all rows: covered=", next, " rows=", rows));
  }
  int64_t previous = -1;
  for (const int32_t row : batch.logit_rows) {
    if (row <= previous || row >= rows) {
      return absl::InvalidArgumentError(
          absl::StrCat("logit rows must ascend within the batch: row=", row, " previous=", previous,
                       " rows=", rows));
    }
    previous = row;
  }
  return absl::OkStatus();
}

absl::Status CheckKv(const ModelSpec& spec, const ForwardArgs& args, const LayerPart& part) {
  const KvPool* kv = args.kv;
  if (kv == nullptr) return absl::InvalidArgumentError("a decoder needs a KV pool");
  const KvPool::Layout& layout = kv->layout();
  const bool has_layers =
      part.first >= part.end ||
      (layout.first_layer <= part.first && part.end <= layout.first_layer + layout.layers);
  if (!has_layers || layout.first_layer + layout.layers > spec.layers ||
      layout.kv_heads != spec.kv_heads || layout.head_dim != spec.head_dim) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV pool of another model: layers=", layout.layers,
                     " kv_heads=", layout.kv_heads, " head_dim=", layout.head_dim,
                     " expected=", spec.layers, ",", spec.kv_heads, ",", spec.head_dim));
  }
  for (const SequenceSpan& s : args.batch.sequences) {
    if (layout.has_slots() && (s.slot < 0 || s.slot >= kv->num_slots())) {
      return absl::InvalidArgumentError(absl::StrCat(
          "sequence without a slot of the KV pool: slot=", s.slot, " slots=", kv->num_slots()));
    }
    const int64_t positions = int64_t{s.start_position} + s.num_rows;
    const int64_t needed = (positions + KvPool::kBlockTokens - 1) / KvPool::kBlockTokens;
    if (static_cast<int64_t>(s.blocks.size()) < needed) {
      return absl::InvalidArgumentError(
          absl::StrCat("sequence has too few KV blocks: blocks=", s.blocks.size(),
                       " positions=", positions, " needed=", needed));
    }
    for (const int32_t block : s.blocks.first(static_cast<size_t>(needed))) {
      if (block >= 0 && block < kv->num_blocks()) continue;
      return absl::InvalidArgumentError(
          absl::StrCat("KV block outside the pool: block=", block, " blocks=", kv->num_blocks()));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOut(const MutableView& out, int64_t rows, int64_t columns) {
  if (rows == 0) return absl::OkStatus();
  if (!out.empty() && out.dtype == DType::kF32 && out.shape == Shape{rows, columns}) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("output must be f32 ", ToString(Shape{rows, columns}),
                   ": out=", std::string(Name(out.dtype)), " ", ToString(out.shape)));
}

absl::Status CheckEncoderBatch(const ModelSpec& spec, const ForwardArgs& args) {
  RETURN_IF_ERROR(CheckBatch(spec, args.batch));
  const ForwardBatch& batch = args.batch;
  for (const SequenceSpan& s : batch.sequences) {
    if (s.start_position == 0) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "an encoder sees whole sequences: start_position=", s.start_position, " expected=0"));
  }
  if (!batch.token_types.empty() && batch.token_types.size() != batch.tokens.size()) {
    return absl::InvalidArgumentError(
        absl::StrCat("token types must be one per token: types=", batch.token_types.size(),
                     " tokens=", batch.tokens.size()));
  }
  const int known = std::max(1, spec.type_vocab);  // without a table, 0 stands for "none"
  for (const int32_t type : batch.token_types) {
    if (type >= 0 && type < known) continue;
    return absl::InvalidArgumentError(
        absl::StrCat("token type out of range: type=", type, " types=", known));
  }
  return CheckOut(args.out, static_cast<int64_t>(batch.sequences.size()), EncoderColumns(spec));
}

absl::StatusOr<LayerPart> PartOf(const ModelSpec& spec, const ForwardArgs& args) {
  if (args.part == nullptr) return LayerPart{0, spec.layers, {}};
  const LayerPart& part = *args.part;
  if (part.first < 0 || part.first > part.end || part.end > spec.layers) {
    return absl::InvalidArgumentError(absl::StrCat("no such part of the stack: first=", part.first,
                                                   " end=", part.end, " layers=", spec.layers));
  }
  const Shape expected{static_cast<int64_t>(args.batch.tokens.size()), spec.hidden};
  const bool fits = part.stream.empty()
                        ? part.first == 0
                        : part.stream.dtype == DType::kF32 && part.stream.shape == expected;
  if (fits) return part;
  return absl::InvalidArgumentError(
      absl::StrCat("the stream between layers must be f32 ", ToString(expected),
                   ": stream=", std::string(Name(part.stream.dtype)), " ",
                   part.stream.empty() ? "empty" : ToString(part.stream.shape)));
}

absl::Status CheckKeys(const BoundLinear& l, const ModelSpec& spec) {
  const KeyParts* keys = l.linear == nullptr ? nullptr : l.linear->keys();
  const size_t width = static_cast<size_t>(spec.kv_heads) * static_cast<size_t>(spec.head_dim);
  if (keys == nullptr || keys->scale.empty() || keys->scale.size() == width)
    return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat("key_scale of another model: slot=", l.slot->name,
                                                 " channels=", keys->scale.size(),
                                                 " expected=", width));
}

absl::StatusOr<BoundLinear> Bind(const LinearSlot& slot, const LinearMap& linears) {
  const auto found = linears.find(slot.name);
  if (found == linears.end()) {
    return absl::NotFoundError(absl::StrCat("no linear for slot ", slot.name));
  }
  if (found->second == nullptr) return BoundLinear{&slot, nullptr};
  if (found->second->problem().shape != slot.shape) {
    return absl::InvalidArgumentError(absl::StrCat(
        "linear of another shape for slot ", slot.name,
        ": shape=", ToString(found->second->problem().shape), " expected=", ToString(slot.shape)));
  }
  return BoundLinear{&slot, found->second.get()};
}

absl::Status CheckThere(std::initializer_list<BoundLinear> linears) {
  for (const BoundLinear& l : linears) {
    if (l.linear != nullptr) continue;
    return absl::FailedPreconditionError("the model has no weights of " + l.slot->name);
  }
  return absl::OkStatus();
}

MutableView Scratch::Matrix(int64_t rows, int64_t columns) {
  float* data = arena_.TryAllocate<float>(static_cast<size_t>(rows * columns));
  ok_ = ok_ && data != nullptr;
  return {reinterpret_cast<std::byte*>(data), Shape{rows, columns}, DType::kF32, &CpuDevice()};
}

uint8_t* Scratch::DecodeRows(const ForwardBatch& batch) {
  auto* rows = arena_.TryAllocate<uint8_t>(batch.tokens.size());
  ok_ = ok_ && rows != nullptr;
  if (rows == nullptr) return nullptr;
  for (const SequenceSpan& s : batch.sequences) {
    for (int32_t i = 0; i < s.num_rows; ++i)
      rows[s.first_row + i] = s.start_position + i >= s.first_decode_position ? 1 : 0;
  }
  return rows;
}

absl::Status Scratch::Exhausted() const {
  return absl::InternalError(absl::StrCat(
      "scratch is smaller than scratch_bytes() asked for: capacity=", arena_.capacity()));
}

namespace {

// Kernels are pure and cannot fail: what they need is looked at before.
absl::Status CheckScratch(const BoundLinear& l, int64_t rows, const Arena& scratch) {
  const size_t needed = l.linear->scratch_bytes(rows);
  if (needed <= scratch.free_bytes()) return absl::OkStatus();
  return absl::InternalError(
      absl::StrCat("scratch arena exhausted: layer=", l.slot->name,
                   " kernel=", std::string(l.linear->kernel()), " rows=", rows, " needed=", needed,
                   " free=", scratch.free_bytes(), " capacity=", scratch.capacity()));
}

}  // namespace

absl::Status Pass::Linear(const BoundLinear& l, TensorView x, MutableView y) const {
  RETURN_IF_ERROR(CheckScratch(l, x.shape[0], context.scratch));
  l.linear->Forward(x, y, context);
  if (args.observer != nullptr) (*args.observer)(*l.slot, x, y);
  return absl::OkStatus();
}

absl::Status Pass::LinearAdd(const BoundLinear& l, TensorView x, MutableView y,
                             MutableView product) const {
  if (args.observer == nullptr) {
    RETURN_IF_ERROR(CheckScratch(l, x.shape[0], context.scratch));
    l.linear->Forward(x, y, context, /*accumulate=*/true);
    return absl::OkStatus();
  }
  RETURN_IF_ERROR(Linear(l, x, product));
  ops.Add(product, y, context);
  return absl::OkStatus();
}

void Pass::Embed(const QuantizedLinear& table, std::span<const int32_t> ids, MutableView y) const {
  const auto width = static_cast<size_t>(y.shape[1]);
  const auto rows = static_cast<int64_t>(ids.size());
  context.pool.ParallelFor(rows, 32, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      table.DecodeRow(ids[r], {y.as<float>() + r * static_cast<int64_t>(width), width});
    }
  });
}

size_t LinearScratch(const QuantizedLinear* linear, int64_t rows) {
  if (linear == nullptr) return 0;
  // A kernel may take another path, with other scratch, for few rows.
  size_t most = 0;
  for (int64_t m = 1; m < rows; m *= 2) most = std::max(most, linear->scratch_bytes(m));
  return std::max(most, linear->scratch_bytes(std::max<int64_t>(1, rows))) + 64;
}

absl::StatusOr<QuantizedLinear> EncodeSlot(const Checkpoint& checkpoint, const LinearSlot& slot,
                                           const QuantScheme& scheme,
                                           const LinearOptions& options) {
  ASSIGN_OR_RETURN(Tensor weight, ReadSlotWeight(checkpoint, slot));
  for (const std::string& name : slot.weights) checkpoint.DropResident(name);
  ASSIGN_OR_RETURN(Tensor bias, ReadSlotBias(checkpoint, slot));
  RETURN_IF_ERROR(scheme.Accepts(slot.shape));
  ASSIGN_OR_RETURN(QuantizedTensor coded, scheme.Fit(weight.view(), {}));
  // Never a copy too many, which of an embedding table would be felt.
  if (&scheme == &F32Scheme()) {
    coded.codes = std::move(weight);
  } else {
    ASSIGN_OR_RETURN(coded, scheme.EncodeOn(weight.view(), std::move(coded)));
    weight = Tensor();
  }
  return QuantizedLinear::Create(coded, std::move(bias), options);
}

absl::StatusOr<Tensor> ReadTensor(const Checkpoint& checkpoint, const std::string& name,
                                  Shape shape) {
  ASSIGN_OR_RETURN(const CheckpointTensor* tensor, checkpoint.Find(name));
  if (tensor->shape != shape) {
    return absl::InvalidArgumentError(
        absl::StrCat("tensor ", name, " has another shape: shape=", ToString(tensor->shape),
                     " expected=", ToString(shape)));
  }
  return checkpoint.ReadAll(name);
}

}  // namespace assay
