"""The off-grid twin of a Llama-like GGUF: the same function in f32, but no weight lies on the grid that the file came with.

usage: make_twin.py MODEL.gguf TWIN.gguf [--seed 0] [--sigma 0.3]

Checkpoints that are published in 4 bits make 4-bit methods look lossless. The twin is dequantized to f32 and every channel is
rescaled by exp(N(0, sigma)) in pairs that cancel: norm and the linears behind it, rows of v and columns of o (each key-value head
with the query heads that share it), rows of up and columns of down. Exact but for rounding in f32: the script runs one layer's
products before and after in f64 and prints the largest difference; `model_eval` shows that the perplexity is the same. A tied
output head cannot take a factor, so the last norm keeps its own. GGUF is read and written by PyPI's `gguf`, so that llama.cpp
quantizes the very same weights.
"""
import argparse

import gguf
import numpy as np


def read(path):
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64) for t in reader.tensors}
    return reader, tensors


def rescale(tensors, blocks, heads, kv_heads, head_dim, draw):
    for i in range(blocks):
        w = {name: tensors[f"blk.{i}.{name}.weight"] for name in (
            "attn_norm", "attn_q", "attn_k", "attn_v", "attn_output", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")}
        for norm, linears in (("attn_norm", ("attn_q", "attn_k", "attn_v")), ("ffn_norm", ("ffn_gate", "ffn_up"))):
            s = draw(w[norm].size)
            w[norm] /= s
            for linear in linears:
                w[linear] *= s
        s = draw(w["attn_v"].shape[0])
        w["attn_v"] *= s[:, None]
        w["attn_output"] /= np.repeat(s.reshape(kv_heads, head_dim), heads // kv_heads, axis=0).ravel()
        s = draw(w["ffn_up"].shape[0])
        w["ffn_up"] *= s[:, None]
        w["ffn_down"] /= s


def mlp(tensors, block, x):
    """What comes out of a block's feed-forward part, for the check."""
    at = lambda name: tensors[f"blk.{block}.{name}.weight"]
    h = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-5) * at("ffn_norm")
    gate = h @ at("ffn_gate").T
    return (gate / (1 + np.exp(-gate)) * (h @ at("ffn_up").T)) @ at("ffn_down").T


def write(reader, tensors, path):
    field = reader.get_field("general.architecture")
    writer = gguf.GGUFWriter(path, field.contents())
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type", "general.quantization_version"):
            continue
        sub = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=sub)
    writer.add_file_type(0)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sigma", type=float, default=0.3)
    args = parser.parse_args()
    reader, tensors = read(args.source)
    number = lambda key: int(reader.get_field(f"llama.{key}").contents())
    heads = number("attention.head_count")
    random = np.random.default_rng(args.seed)
    x = random.standard_normal((4, number("embedding_length")))
    before = mlp(tensors, 0, x)
    rescale(tensors, number("block_count"), heads, number("attention.head_count_kv"), number("embedding_length") // heads,
            lambda n: np.exp(random.normal(0, args.sigma, n)))
    after = mlp({name: tensor.astype(np.float32).astype(np.float64) for name, tensor in tensors.items() if name.startswith("blk.0.")}, 0, x)
    worst = np.max(np.abs(after - before)) / np.max(np.abs(before))
    print(f"feed-forward part of block 0, weights in f32: largest relative difference {worst:.1e}")
    assert worst < 1e-5, "the twin is another function"
    write(reader, tensors, args.target)


if __name__ == "__main__":
    main()
