// The kernels behind flat C functions, for a process that measures them beside another library's
// (bench.py: ctypes and torch). Built twice: libassay_kernels for the driver, and for the emulator,
// where device memory is the host's, for trying the bench where there is no GPU.
//
// Pointers are device memory unless their name says host. Activations are bf16. `stream` is a
// cudaStream_t; nothing but what says so waits or allocates, so that calls can be captured into a
// graph. Functions that return int: 0, or -1 and assay_error() says why; that return a pointer:
// null then. One thread at a time.
#pragma once
#include <stddef.h>
#include <stdint.h>

extern "C" {

const char* assay_error();
int assay_open(int device);  // first of all
const char* assay_device_name();
int assay_is_emulated();
int assay_compute();  // 90 = 9.0
size_t assay_l2_bytes();

// Memory, and copies that are waited for.
void* assay_allocate(size_t bytes);
void assay_free(void* memory, size_t bytes);
int assay_upload(const void* host_from, void* to, size_t bytes);
int assay_download(const void* from, void* host_to, size_t bytes);
int assay_synchronize(void* stream);

// Sizes of the structs below, in their order, for a caller that declares them again.
int assay_struct_bytes(int which);

// base/.../quantize.h. `to`: 0 a8_token, 1 fp8_token, 2 int8_channel, 3 fp8_e4m3.
struct AssayQuantize {
  const void* from;  // bf16 [rows, k]
  uint8_t* codes;    // [rows, k]
  float* scales;     // [rows]
  int rows, k, to;
};
int assay_quantize_rows(const AssayQuantize* args, void* stream);
// int4_group, symmetric: codes [n, k / 2], scales bf16 [n, k / group].
struct AssayQuantizeInt4 {
  const void* from;  // bf16 [n, k]
  uint8_t* codes;
  void* scales;
  int n, k, group;
};
int assay_quantize_int4(const AssayQuantizeInt4* args, void* stream);

// RMS norm of f32 rows [rows, width]; `form`: 0 bf16, 1 s8 codes, 2 e4m3 codes, 3 f32.
struct AssayNorm {
  float* x;  // [rows, width]
  const float* gain;
  void* out;
  float* scales;  // [rows], of codes
  int rows, width, form;
  float eps;
};
int assay_norm(const AssayNorm* args, void* stream);
// silu(x[:, :width]) * x[:, width:], x f32 [rows, 2 width].
struct AssayActivate {
  const float* x;
  void* out;
  float* scales;
  int rows, width, form;
};
int assay_activate(const AssayActivate* args, void* stream);

// engine/ops/cuda/kv_layout.h. `format`: 0 bf16, 1 s8, 2 e4m3.
struct AssayKv {
  void* codes;
  float* scales;
  int format, kv_heads, head_dim;
};
struct AssayRope {
  const float* qkv;  // f32 [rows][heads + 2 kv_heads][head_dim]
  const float* inv_freq;
  const int32_t *positions, *sequence_of_row;  // [rows]
  const int32_t* block_tables;                 // [sequences][max_blocks]
  void* q;                                     // bf16 [rows][heads][head_dim]
  int rows, max_blocks, heads;
  AssayKv kv;
};
int assay_rope_append(const AssayRope* args, void* stream);
struct AssayDecode {
  const void* q;  // bf16 [rows][heads][head_dim]
  const int32_t *positions, *sequence_of_row, *block_tables;
  float* workspace;  // assay_decode_workspace_bytes
  int* arrived;      // [rows][kv_heads] zeros
  void* y;
  int rows, max_blocks, heads, splits;
  float scale;
  AssayKv kv;
};
size_t assay_decode_workspace_bytes(int rows, int heads, int head_dim, int splits);
int assay_decode_attention(const AssayDecode* args, void* stream);
struct AssayPrefill {
  const void* q;
  const int32_t* tiles;  // [num_tiles][4]: first row, rows (up to 64), sequence, start position
  const int32_t* block_tables;
  void* y;
  int num_tiles, max_blocks, heads;
  float scale;
  AssayKv kv;
};
int assay_prefill_attention(const AssayPrefill* args, void* stream);

// A linear layer (quant/kernels/cuda/cuda_linear.h) of a weight bf16 [n, k], quantized on the
// device: int4_group, int8_channel, fp8_e4m3. `activation`: "a16", "a8_token", "fp8_token",
// "fp8_block". Products of new shapes are timed (lt_products.h). Waits.
void* assay_linear_quantize(const char* scheme, const char* activation, int n, int k,
                            const void* weight);
// What assay_linear_run wants of x for so many rows: 0 bf16, 1 s8, 2 e4m3, with scales but for
// bf16.
int assay_linear_form(const void* linear, int rows);
// Of codes and scales in host memory, as the scheme draws them (nf4, ...).
void* assay_linear_upload(const char* scheme, int n, int k, const void* host_codes,
                          const void* host_scales, size_t scale_bytes);
void assay_linear_destroy(void* linear);
size_t assay_linear_bytes(const void* linear);
int assay_linear_prepare(void* linear, int rows);  // scratch for so many rows; before a capture
// y f32 [rows, n] = x W^T; x [rows, k] in the form that it wants.
int assay_linear_run(void* linear, const void* x, const float* x_scales, int rows, float* y,
                     void* stream);

// FP8 by cuBLASLt with scales per row on both sides: y bf16 [m, n] = (x sx) (w sw)^T.
void* assay_fp8_create(int m, int n, int k);
void assay_fp8_destroy(void* product);
int assay_fp8_algorithms(const void* product);
struct AssayFp8 {
  const uint8_t* x;  // e4m3 [m, k]
  const uint8_t* w;  // e4m3 [n, k]
  const float *x_scales, *w_scales;
  void* y;
  int algorithm;
};
int assay_fp8_run(void* product, const AssayFp8* args, void* stream);

// A llama with random weights: slices of `weights`, bf16 numbers, at least as many as the largest
// layer has, quantized on the device. Norms are ones, the embedding is int8_channel. Waits.
struct AssayModel {
  const char *scheme, *head_scheme, *activation;
  const void* weights;
  int layers, hidden, heads, kv_heads, head_dim, ffn, vocab, max_context, splits, pdl;
  float rope_theta, norm_eps;
};
void* assay_model_create(const AssayModel* args);
void assay_model_destroy(void* model);
size_t assay_model_bytes(const void* model);
// A KV cache and scratch for so many sequences of `context` tokens, steps of up to `rows` rows.
// `kv_format`: 0 bf16, 1 s8.
void* assay_pass_create(void* model, int sequences, int context, int rows, int kv_format);
void assay_pass_destroy(void* pass);
// One forward pass as the engine runs it: uploads the batch, runs the step (from the third of a
// size on as a graph), downloads the logits, waits. Sequence i gets host_counts[i] of the tokens
// from position host_starts[i] on, those with none are left out; `decode`: as decode steps. Logits:
// of each such sequence's last row, f32 [.., vocab] in pinned memory, valid until the next call.
struct AssayStep {
  const int32_t *host_tokens, *host_starts, *host_counts;
  int sequences, decode;
};
const float* assay_pass_step(void* pass, const AssayStep* step);

}  // extern "C"
