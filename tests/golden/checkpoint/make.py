#!/usr/bin/env python3
"""Golden files of the checkpoint readers, made by independent packages: gguf (the blocks and their values, the container)
and safetensors (the container); the row permutation is the one of llama.cpp's convert_hf_to_gguf.py.

    pip install gguf==0.19.0 safetensors==0.8.0 numpy==2.4.6
    python tests/golden/checkpoint/make.py     # 2026-11-22, seed 2; writes beside itself

blocks.gguf      one tensor per type and fill: random bytes with finite scales ("random.<type>"), and what gguf quantizes
                 from normal values where it can ("quantized.<type>")
blocks.f32       gguf.quants.dequantize of every tensor of blocks.gguf, in order of name
llama.gguf       a one-layer llama with q and k biases, 4 heads on 2 KV heads; q, k permuted; rope_freqs
llama.safetensors  the same tensors under their Hugging Face names, not permuted
qwen3.gguf, qwen3.safetensors, bert.gguf, bert.safetensors  likewise, nothing permuted
types.safetensors  one tensor per dtype; types.f32 the values of f32, f16 and bf16, in this order
"""
import lzma
import pathlib
import struct

import gguf
import numpy as np
import safetensors
import safetensors.numpy

HERE = pathlib.Path(__file__).parent
RNG = np.random.default_rng(2)
T = gguf.GGMLQuantizationType
TYPES = [T.F32, T.F16, T.BF16, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1, T.Q8_0, T.Q2_K, T.Q3_K, T.Q4_K, T.Q5_K, T.Q6_K]
# Where the f16 scales of a block lie.
HALVES = {T.Q4_0: [0], T.Q4_1: [0, 2], T.Q5_0: [0], T.Q5_1: [0, 2], T.Q8_0: [0], T.Q2_K: [80, 82], T.Q3_K: [108],
          T.Q4_K: [0, 2], T.Q5_K: [0, 2], T.Q6_K: [208]}


def pack(name, data):
    (HERE / (name + ".xz")).write_bytes(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME))


def finite_halves(count):
    """All kinds of f16 but infinities and NaN: normal, subnormal, zero, negative."""
    bits = RNG.integers(0, 1 << 16, count, dtype=np.uint16)
    special = (bits & 0x7C00) == 0x7C00
    bits[special] &= 0x83FF  # a subnormal
    return bits


def random_blocks(kind, shape):
    """Bytes [shape[0], row bytes] of valid blocks."""
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    rows, per_row = shape[0], shape[1] // elements
    if kind == T.F32:
        return RNG.standard_normal(shape).astype(np.float32).view(np.uint8)
    if kind in (T.F16, T.BF16):
        bits = finite_halves(shape[0] * shape[1])
        if kind == T.BF16:
            bits = (RNG.standard_normal(shape[0] * shape[1]).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        return bits.reshape(shape).view(np.uint8)
    blocks = RNG.integers(0, 256, (rows * per_row, size), dtype=np.uint8)
    for at in HALVES[kind]:
        blocks[:, at:at + 2] = finite_halves(rows * per_row).reshape(-1, 1).view(np.uint8)
    return blocks.reshape(rows, per_row * size)


def make_blocks():
    writer = gguf.GGUFWriter(HERE / "blocks.gguf", "golden")
    values = {}
    for kind in TYPES:
        filled = {"random": random_blocks(kind, (3, 1024))}
        try:
            filled["quantized"] = gguf.quants.quantize(RNG.standard_normal((2, 512)).astype(np.float32), kind).view(np.uint8)
        except NotImplementedError:  # the k-quants
            pass
        for fill, data in filled.items():
            name = f"{fill}.{kind.name.lower()}"
            writer.add_tensor(name, data, raw_dtype=kind)
            values[name] = gguf.quants.dequantize(data, kind).astype(np.float32)
    finish(writer)
    pack("blocks.gguf", (HERE / "blocks.gguf").read_bytes())
    pack("blocks.f32", b"".join(values[name].tobytes() for name in sorted(values)))
    (HERE / "blocks.gguf").unlink()


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permute(weights, heads):
    """LlamaModel.permute of convert_hf_to_gguf.py; for k, `heads` is the number of KV heads."""
    return weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def values(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


HIDDEN, INNER, VOCAB, HEADS, KV_HEADS, HEAD = 32, 48, 24, 4, 2, 8
DECODER = {
    "token_embd.weight": ("model.embed_tokens.weight", (VOCAB, HIDDEN)),
    "output_norm.weight": ("model.norm.weight", (HIDDEN,)),
    "output.weight": ("lm_head.weight", (VOCAB, HIDDEN)),
    "blk.0.attn_norm.weight": ("model.layers.0.input_layernorm.weight", (HIDDEN,)),
    "blk.0.attn_q.weight": ("model.layers.0.self_attn.q_proj.weight", (HEADS * HEAD, HIDDEN)),
    "blk.0.attn_k.weight": ("model.layers.0.self_attn.k_proj.weight", (KV_HEADS * HEAD, HIDDEN)),
    "blk.0.attn_v.weight": ("model.layers.0.self_attn.v_proj.weight", (KV_HEADS * HEAD, HIDDEN)),
    "blk.0.attn_output.weight": ("model.layers.0.self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD)),
    "blk.0.ffn_norm.weight": ("model.layers.0.post_attention_layernorm.weight", (HIDDEN,)),
    "blk.0.ffn_gate.weight": ("model.layers.0.mlp.gate_proj.weight", (INNER, HIDDEN)),
    "blk.0.ffn_up.weight": ("model.layers.0.mlp.up_proj.weight", (INNER, HIDDEN)),
    "blk.0.ffn_down.weight": ("model.layers.0.mlp.down_proj.weight", (HIDDEN, INNER)),
}
LLAMA = DECODER | {
    "blk.0.attn_q.bias": ("model.layers.0.self_attn.q_proj.bias", (HEADS * HEAD,)),
    "blk.0.attn_k.bias": ("model.layers.0.self_attn.k_proj.bias", (KV_HEADS * HEAD,)),
    "rope_freqs.weight": ("rope_freqs.weight", (HEAD // 2,)),
}
QWEN3 = {k: v for k, v in DECODER.items() if k != "output.weight"} | {
    "blk.0.attn_q_norm.weight": ("model.layers.0.self_attn.q_norm.weight", (HEAD,)),
    "blk.0.attn_k_norm.weight": ("model.layers.0.self_attn.k_norm.weight", (HEAD,)),
}
BERT = {
    "token_embd.weight": ("embeddings.word_embeddings.weight", (VOCAB, HIDDEN)),
    "position_embd.weight": ("embeddings.position_embeddings.weight", (16, HIDDEN)),
    "token_types.weight": ("embeddings.token_type_embeddings.weight", (2, HIDDEN)),
    "token_embd_norm.weight": ("embeddings.LayerNorm.weight", (HIDDEN,)),
    "token_embd_norm.bias": ("embeddings.LayerNorm.bias", (HIDDEN,)),
    "blk.0.attn_q.weight": ("encoder.layer.0.attention.self.query.weight", (HIDDEN, HIDDEN)),
    "blk.0.attn_q.bias": ("encoder.layer.0.attention.self.query.bias", (HIDDEN,)),
    "blk.0.attn_k.weight": ("encoder.layer.0.attention.self.key.weight", (HIDDEN, HIDDEN)),
    "blk.0.attn_v.weight": ("encoder.layer.0.attention.self.value.weight", (HIDDEN, HIDDEN)),
    "blk.0.attn_output.weight": ("encoder.layer.0.attention.output.dense.weight", (HIDDEN, HIDDEN)),
    "blk.0.attn_output_norm.weight": ("encoder.layer.0.attention.output.LayerNorm.weight", (HIDDEN,)),
    "blk.0.ffn_up.weight": ("encoder.layer.0.intermediate.dense.weight", (INNER, HIDDEN)),
    "blk.0.ffn_down.weight": ("encoder.layer.0.output.dense.weight", (HIDDEN, INNER)),
    "blk.0.layer_output_norm.bias": ("encoder.layer.0.output.LayerNorm.bias", (HIDDEN,)),
}


def make_model(arch, names):
    writer = gguf.GGUFWriter(HERE / f"{arch}.gguf", arch)
    writer.add_name("golden " + arch)
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    if arch == "bert":
        writer.add_layer_norm_eps(1e-12)
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    else:
        writer.add_head_count_kv(KV_HEADS)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(500000.0)
        writer.add_rope_dimension_count(HEAD)
    if arch == "qwen3":
        writer.add_key_length(HEAD)
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(VOCAB)])
    writer.add_token_scores([float(-i) for i in range(VOCAB)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    canonical = {}
    for name, (hf, shape) in names.items():
        w = canonical[hf] = values(*shape)
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2])
        writer.add_tensor(name, permute(w, heads) if arch == "llama" and heads else w)
    finish(writer)
    pack(f"{arch}.gguf", (HERE / f"{arch}.gguf").read_bytes())
    (HERE / f"{arch}.gguf").unlink()
    pack(f"{arch}.safetensors", safetensors.numpy.save(canonical, metadata={"format": "pt"}))


def make_types():
    f32 = values(3, 5)
    f16 = finite_halves(14).reshape(2, 7)
    bf16 = (values(2, 2, 3).view(np.uint32) >> 16).astype(np.uint16)
    raw = {  # name -> (dtype, shape, bytes)
        "f32": ("float32", f32.shape, f32.tobytes()), "f16": ("float16", f16.shape, f16.tobytes()),
        "bf16": ("bfloat16", bf16.shape, bf16.tobytes()), "i64": ("int64", [2], np.arange(2).tobytes()),
        "f8_e4m3": ("float8_e4m3fn", [3], b"abc"), "bool": ("bool", [2], b"\0\1"), "scalar": ("float32", [], struct.pack("<f", 2.5)),
        "empty": ("float32", [0, 4], b""),
    }
    buffers = {n: np.frombuffer(b or b"\0", np.uint8) for n, (_, _, b) in raw.items()}
    data = safetensors.serialize({n: safetensors.TensorSpec(dtype=d, shape=list(s), data_ptr=buffers[n].ctypes.data, data_len=len(b))
                                  for n, (d, s, b) in raw.items()})
    pack("types.safetensors", data)
    expected = [f32, f16.view(np.float16).astype(np.float32), (bf16.astype(np.uint32) << 16).view(np.float32)]
    pack("types.f32", b"".join(e.tobytes() for e in expected))


make_blocks()
for arch, names in {"llama": LLAMA, "qwen3": QWEN3, "bert": BERT}.items():
    make_model(arch, names)
make_types()
