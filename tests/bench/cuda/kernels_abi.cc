#include "tests/bench/cuda/kernels_abi.h"

#include <array>
#include <cstring>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "engine/ops/cuda/decode_attention.h"
#include "engine/ops/cuda/prefill_attention.h"
#include "quant/kernels/cuda/quantize_groups.h"
#include "tests/bench/cuda/kernels_state.h"

namespace assay {
namespace {

std::string& Error() {
  static auto& error = *new std::string();
  return error;
}

RowForm FormOf(int form) {
  constexpr std::array forms = {RowForm::kHalf, RowForm::kS8, RowForm::kE4M3, RowForm::kFloat};
  return forms[static_cast<size_t>(form)];
}

KvLayer LayerOf(const AssayKv& kv) {
  return {.codes = kv.codes,
          .scales = kv.scales,
          .format = static_cast<KvCodes>(kv.format),
          .kv_heads = kv.kv_heads,
          .head_dim = kv.head_dim};
}

int LayerRefused(const KvLayer& kv, std::string_view op) {
  const char* const why = KvLayerRefuses(kv);
  return why == nullptr ? 0 : Refused(why, op);
}

}  // namespace

BenchState& State() {
  static auto& state = *new BenchState();
  return state;
}

int Report(const absl::Status& status) {
  if (status.ok()) return 0;
  Error() = status.ToString();
  return -1;
}
int Report(int error, std::string_view op) { return Report(CudaStatus(error, op)); }
int Refused(const char* why, std::string_view op) {
  return Report(absl::InvalidArgumentError(absl::StrCat(std::string(op), ": ", why)));
}

}  // namespace assay

using assay::Refused;
using assay::Report;
using assay::State;

const char* assay_error() { return assay::Error().c_str(); }

int assay_open(int device) {
  const assay::CudaRuntime* const runtime = assay::BenchRuntime();
  if (runtime == nullptr) return Report(absl::UnavailableError("built without a CUDA toolkit"));
  if (const auto count = runtime->CountDevices(); !count.ok()) return Report(count.status());
  auto opened = assay::CudaDevice::Open(*runtime, device);
  if (!opened.ok()) return Report(opened.status());
  State().device = *std::move(opened);
  assay::LtOptions options;
  if (assay_is_emulated() != 0)  // times mean nothing there
    options.timer = [](const assay::LtAlgorithm&, const auto&) { return 1.0; };
  auto lt = assay::LtProducts::Open(*State().device, "", options);
  if (!lt.ok()) return Report(lt.status());
  State().lt = *std::move(lt);
  State().kernel = std::make_unique<assay::CudaLinearKernel>("cuda", State().Backend());
  return 0;
}
const char* assay_device_name() { return State().device->properties().name.c_str(); }
int assay_is_emulated() { return std::string_view(assay_device_name()) == "emulated" ? 1 : 0; }
int assay_compute() { return State().device->profile().compute; }
size_t assay_l2_bytes() { return State().device->properties().l2_bytes; }

void* assay_allocate(size_t bytes) {
  const auto memory = State().device->runtime().Allocate(State().device->index(), bytes);
  if (memory.ok()) return *memory;
  Report(memory.status());
  return nullptr;
}
void assay_free(void* memory, size_t bytes) {
  State().device->runtime().Free(State().device->index(), static_cast<std::byte*>(memory), bytes);
}
int assay_upload(const void* host_from, void* to, size_t bytes) {
  const assay::CudaDevice& device = *State().device;
  if (Report(device.runtime().Upload(host_from, to, bytes, device.stream())) != 0) return -1;
  return assay_synchronize(device.stream());
}
int assay_download(const void* from, void* host_to, size_t bytes) {
  const assay::CudaDevice& device = *State().device;
  if (Report(device.runtime().Download(from, host_to, bytes, device.stream())) != 0) return -1;
  return assay_synchronize(device.stream());
}
int assay_synchronize(void* stream) {
  return Report(State().device->runtime().Synchronize(stream));
}

int assay_struct_bytes(int which) {
  constexpr std::array<size_t, 11> bytes = {
      sizeof(AssayQuantize), sizeof(AssayQuantizeInt4), sizeof(AssayNorm),   sizeof(AssayActivate),
      sizeof(AssayKv),       sizeof(AssayRope),         sizeof(AssayDecode), sizeof(AssayPrefill),
      sizeof(AssayFp8),      sizeof(AssayModel),        sizeof(AssayStep)};
  return static_cast<int>(bytes[static_cast<size_t>(which)]);
}

int assay_quantize_rows(const AssayQuantize* args, void* stream) {
  const assay::QuantizeRowsArgs call = {.from = args->from,
                                        .codes = args->codes,
                                        .scales = args->scales,
                                        .rows = args->rows,
                                        .k = args->k,
                                        .from_stride = args->k,
                                        .codes_stride = args->k,
                                        .number = assay::Number::kBf16,
                                        .to = static_cast<assay::RowCodes>(args->to)};
  if (const char* const why = QuantizeRowsRefuses(call)) return Refused(why, "quantize_rows");
  return Report(assay::world::QuantizeRows(call, {.stream = stream}), "quantize_rows");
}

int assay_quantize_int4(const AssayQuantizeInt4* args, void* stream) {
  const assay::QuantizeGroupsArgs call = {.from = args->from,
                                          .codes = args->codes,
                                          .scales = static_cast<uint16_t*>(args->scales),
                                          .n = args->n,
                                          .k = args->k,
                                          .group = args->group,
                                          .number = assay::Number::kBf16};
  if (const char* const why = QuantizeGroupsRefuses(call)) return Refused(why, "quantize_int4");
  return Report(assay::world::QuantizeGroups(call, {.stream = stream}), "quantize_int4");
}

int assay_norm(const AssayNorm* args, void* stream) {
  if (const char* const why = assay::NormRefuses(args->width)) return Refused(why, "norm");
  const assay::NormArgs call = {.stream = args->x,
                                .gain = args->gain,
                                .eps = args->eps,
                                .rows = args->rows,
                                .width = args->width,
                                .form = assay::FormOf(args->form),
                                .out = args->out,
                                .scales = args->scales};
  return Report(assay::world::Norm(call, {.stream = stream}), "norm");
}

int assay_activate(const AssayActivate* args, void* stream) {
  const assay::GateArgs call = {.x = args->x,
                                .rows = args->rows,
                                .width = args->width,
                                .form = assay::FormOf(args->form),
                                .out = args->out,
                                .scales = args->scales};
  return Report(assay::world::Activate(call, {.stream = stream}), "activate");
}

int assay_rope_append(const AssayRope* args, void* stream) {
  assay::RopeAppendArgs call;
  call.qkv = args->qkv;
  call.type = assay::Half::kBf16;
  call.heads = args->heads;
  call.inv_freq = args->inv_freq;
  call.batch = {.positions = args->positions,
                .sequence_of_row = args->sequence_of_row,
                .block_tables = args->block_tables,
                .rows = args->rows,
                .max_blocks = args->max_blocks};
  call.kv = assay::LayerOf(args->kv);
  call.q = args->q;
  if (assay::LayerRefused(call.kv, "rope_append") != 0) return -1;
  if (const char* const why = assay::world::RopeAppendRefuses(call))
    return Refused(why, "rope_append");
  return Report(assay::world::RopeAppend(call, {.stream = stream}), "rope_append");
}

size_t assay_decode_workspace_bytes(int rows, int heads, int head_dim, int splits) {
  return assay::DecodeWorkspaceBytes(rows, heads, head_dim, splits);
}

int assay_decode_attention(const AssayDecode* args, void* stream) {
  const assay::DecodeAttentionArgs call = {.type = assay::Half::kBf16,
                                           .q = args->q,
                                           .heads = args->heads,
                                           .scale = args->scale,
                                           .batch = {.positions = args->positions,
                                                     .sequence_of_row = args->sequence_of_row,
                                                     .block_tables = args->block_tables,
                                                     .rows = args->rows,
                                                     .max_blocks = args->max_blocks},
                                           .kv = assay::LayerOf(args->kv),
                                           .splits = args->splits,
                                           .workspace = args->workspace,
                                           .arrived = args->arrived,
                                           .y = args->y};
  if (const char* const why = assay::world::DecodeAttentionRefuses(call))
    return Refused(why, "decode_attention");
  return Report(assay::world::DecodeAttention(call, {.stream = stream}), "decode_attention");
}

int assay_prefill_attention(const AssayPrefill* args, void* stream) {
  const assay::PrefillAttentionArgs call = {
      .type = assay::Half::kBf16,
      .q = args->q,
      .heads = args->heads,
      .scale = args->scale,
      .tiles = reinterpret_cast<const assay::QueryTile*>(args->tiles),
      .num_tiles = args->num_tiles,
      .block_tables = args->block_tables,
      .max_blocks = args->max_blocks,
      .kv = assay::LayerOf(args->kv),
      .y = args->y};
  if (const char* const why = assay::world::PrefillAttentionRefuses(call))
    return Refused(why, "prefill_attention");
  return Report(assay::world::PrefillAttention(call, {.stream = stream}), "prefill_attention");
}
