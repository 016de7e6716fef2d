#include "engine/runtime/generate_sizes.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "engine/runtime/kv_cache.h"

namespace assay {
namespace {

absl::Status CheckAtLeastOne(const char* name, int64_t value) {
  if (value >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(name, " must be at least 1: ", name, "=", value));
}

}  // namespace

absl::StatusOr<GenerateSizes> WorkOutSizes(const Model& model, const EngineOptions& options) {
  const ModelSpec& spec = model.spec();
  if (spec.task != ModelTask::kGenerate)
    return absl::InvalidArgumentError(
        absl::StrCat("not a generative model: architecture=", spec.architecture));
  RETURN_IF_ERROR(CheckAtLeastOne("max_sequences", options.max_sequences));
  RETURN_IF_ERROR(CheckAtLeastOne("max_step_tokens", options.max_step_tokens));
  RETURN_IF_ERROR(CheckAtLeastOne("max_queue", options.max_queue));
  const KvPool::Layout layout = model.kv_layout(options.kv_format);
  if (!layout.holds(layout.dtype))
    return absl::InvalidArgumentError(
        absl::StrCat("the KV cache is f32, f16, i8 or u4 (f8_e4m3 on a GPU): kv_dtype=",
                     std::string(Name(options.kv_format.dtype))));
  if (options.max_context < 0)
    return absl::InvalidArgumentError(
        absl::StrCat("max_context must not be negative: max_context=", options.max_context));
  GenerateSizes sizes;
  sizes.max_sequences = std::min(options.max_sequences, options.max_step_tokens);
  sizes.max_step_tokens = options.max_step_tokens;
  sizes.max_context =
      options.max_context > 0 ? std::min(options.max_context, spec.max_context) : spec.max_context;
  size_t kv_bytes = options.kv_bytes;
  if (layout.has_slots()) {
    const auto room = static_cast<int64_t>(kv_bytes / 2 / layout.slot_bytes());
    sizes.max_sequences =
        static_cast<int>(std::clamp<int64_t>(room, 1, int64_t{sizes.max_sequences}));
    sizes.num_slots = sizes.max_sequences;
    kv_bytes -= std::min(kv_bytes, sizes.num_slots * layout.slot_bytes());
  }
  const size_t block_bytes = layout.block_bytes();
  const int64_t useful = int64_t{sizes.max_sequences} * KvCache::BlocksFor(sizes.max_context);
  sizes.num_blocks =
      static_cast<int>(std::min<int64_t>(useful, static_cast<int64_t>(kv_bytes / block_bytes)));
  const int64_t positions = int64_t{sizes.num_blocks} * KvCache::kBlockTokens;
  if (positions == 0 || (options.max_context > 0 && positions < options.max_context))
    return absl::InvalidArgumentError(absl::StrCat(
        "kv_bytes is too small for one sequence: kv_bytes=", options.kv_bytes,
        " max_context=", sizes.max_context, " bytes needed=",
        block_bytes * KvCache::BlocksFor(sizes.max_context) + options.kv_bytes - kv_bytes));
  sizes.max_context = static_cast<int>(std::min<int64_t>(sizes.max_context, positions));
  return sizes;
}

}  // namespace assay
