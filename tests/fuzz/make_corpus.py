#!/usr/bin/env python3
"""Small seeds for the fuzz targets, valid and subtly wrong: python tests/fuzz/make_corpus.py (pip install gguf numpy safetensors).
Inputs that a fuzzer found are added by hand under the name crash-<what it was>."""
import json
import pathlib
import struct

import gguf
import numpy as np
import safetensors.numpy

HERE = pathlib.Path(__file__).parent / "corpus"
RNG = np.random.default_rng(3)


def write(target, name, data):
    (HERE / target).mkdir(parents=True, exist_ok=True)
    (HERE / target / name).write_bytes(data)


def make_gguf(name, arch, tensors, metadata=lambda writer: None):
    path = HERE / "gguf" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    metadata(writer)
    for tensor, (kind, data) in tensors.items():
        writer.add_tensor(tensor, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def llama(writer):
    writer.add_block_count(1)
    writer.add_embedding_length(8)
    writer.add_head_count([2])
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(2.0)
    writer.add_custom_alignment(16)
    writer.add_token_list(["a", "▁b", "<s>"])
    writer.add_token_scores([0.0, -1.0, 2.0])
    writer.add_token_types([1, 1, 3])
    writer.add_add_bos_token(True)


def f32(*shape):
    return gguf.GGMLQuantizationType.F32, RNG.standard_normal(shape).astype(np.float32)


data = make_gguf("llama.gguf", "llama", {"token_embd.weight": f32(3, 8), "blk.0.attn_q.weight": f32(8, 8), "blk.0.attn_k.bias": f32(4)}, llama)
make_gguf("bert.gguf", "bert", {"token_embd.weight": f32(3, 8), "token_types.weight": f32(2, 8)},
          lambda w: (w.add_head_count(2), w.add_pooling_type(gguf.PoolingType.CLS)))
for kind in gguf.GGMLQuantizationType:
    elements, size = gguf.GGML_QUANT_SIZES[kind]
    if elements > 1:
        make_gguf(f"{kind.name.lower()}.gguf", "x", {"w": (kind, RNG.integers(0, 256, (2, size), dtype=np.uint8))})
write("gguf", "version2.gguf", data[:4] + struct.pack("<I", 2) + data[8:])
write("gguf", "many-tensors.gguf", data[:8] + struct.pack("<Q", 1 << 60) + data[16:])
write("gguf", "many-pairs.gguf", data[:16] + struct.pack("<Q", 1 << 60) + data[24:])
write("gguf", "truncated.gguf", data[: len(data) // 2])

file = safetensors.numpy.save({"a": f32(2, 3)[1], "b": np.arange(3), "c": np.float16([1, 2])}, {"format": "pt"})
write("safetensors", "three.safetensors", file)
write("safetensors", "truncated.safetensors", file[:-3])


def raw(header, size):
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + bytes(size)


entry = {"dtype": "BF16", "shape": [2, 2], "data_offsets": [0, 8]}
write("safetensors", "overlap.safetensors", raw({"a": entry, "b": entry | {"data_offsets": [4, 12]}}, 12))
write("safetensors", "gap.safetensors", raw({"a": entry, "b": entry | {"data_offsets": [12, 20]}}, 20))
write("safetensors", "absurd.safetensors", raw({"a": entry | {"shape": [1 << 60, 16, 1 << 60]}}, 8))
write("safetensors", "deep.safetensors", raw(b'{"a":{"shape":' + b"[" * 200, 0))
write("safetensors", "not-utf8.safetensors", raw(b'{"\xff":{}}', 0))
write("safetensors", "index.json", json.dumps({"weight_map": {"a": "model-00001-of-00001.safetensors"}}).encode())


def tokenizer(name, spec, text="Hello, wörld  <s> 12 🦙\n"):
    write("tokenizer", name, json.dumps(spec, ensure_ascii=False).encode() + b"\0" + text.encode())


def from_gguf(model, tokens, types, **more):
    metadata = {"model": model, "tokens": tokens, "token_type": types, **more}
    return {"format": "gguf", "metadata": {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}}


def from_json(model, **components):
    added = [{"id": 5, "content": "<s>", "special": True}, {"id": 6, "content": "lo", "lstrip": True, "rstrip": True}]
    return {"format": "huggingface", "config": {"eos_token": "<s>", "chat_template": "<|im_start|>"},
            "tokenizer": {"added_tokens": added, "model": model, **components}}


BPE = {"type": "BPE", "vocab": {"l": 0, "o": 1, "w": 2, "lo": 6, "ö": 3, "Ġ": 4}, "merges": ["l o"], "unk_token": "w"}
tokenizer("bpe", from_json(BPE, pre_tokenizer={"type": "ByteLevel"}, decoder={"type": "ByteLevel"}))
tokenizer("split", from_json(
    BPE, pre_tokenizer={"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": r"\s+(?!\S)|\p{L}+|[^\w]"}, "behavior": "MergedWithNext", "invert": False},
        {"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "Contiguous"}]},
    normalizer={"type": "Sequence", "normalizers": [
        {"type": "NFKC"}, {"type": "Lowercase"}, {"type": "Strip"}, {"type": "Replace", "pattern": {"Regex": "l+"}, "content": "lo"}]},
    decoder={"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "o"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 2}]},
    post_processor={"type": "TemplateProcessing", "single": [
        {"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"ids": [5]}}}))
tokenizer("unigram", from_json(
    {"type": "Unigram", "unk_id": 0, "vocab": [["?", 0], ["▁", -1], ["ll", -1.5], ["l", -2], ["▁H", -3]]},
    pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"},
    decoder={"type": "Metaspace", "replacement": "▁"},
    normalizer={"type": "Precompiled", "precompiled_charsmap": "CAAAAAAEAAAAAAAAYQA="}))
tokenizer("wordpiece", from_json(
    {"type": "WordPiece", "unk_token": "?", "vocab": {"?": 0, "he": 1, "##l": 2, "##o": 3, ",": 4, "lo": 6}},
    normalizer={"type": "BertNormalizer"}, pre_tokenizer={"type": "BertPreTokenizer"}, decoder={"type": "WordPiece"},
    post_processor={"type": "BertProcessing", "cls": ["<s>", 5], "sep": ["<s>", 5]}))
tokenizer("gguf-bpe", from_gguf("gpt2", ["l", "o", "lo", "<s>", "Hello"], [1, 1, 1, 3, 4], merges=["l o"], pre="llama-bpe"))
tokenizer("gguf-spm", from_gguf("llama", ["<unk>", "<s>", "</s>", "▁", "l", "lo", "o"], [2, 3, 3, 1, 1, 1, 1],
                                scores=[0, 0, 0, -1, -2, -3, -4], unknown_token_id=0, bos_token_id=1))
tokenizer("gguf-t5", from_gguf("t5", ["▁", "l", "<unk>", "lo", "o"], [1, 1, 2, 4, 1], scores=[-1, -2, 0, -3, -4],
                               remove_extra_whitespaces=True, precompiled_charsmap=[8, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 97, 0]))
tokenizer("gguf-bert", from_gguf("bert", ["[UNK]", "[CLS]", "[SEP]", "▁he", "l", "lo", "▁,"], [3, 3, 3, 1, 1, 1, 1],
                                 cls_token_id=1, seperator_token_id=2))

for name, text in {
    "text.txt": "onceuponatime\ntherewasatext\n", "text.jsonl": '{"text": "onceuponatime"}\n{"text": "x"}\n',
    "chat.jsonl": '{"messages": [{"role": "user", "content": "abcdefghij"}]}\n',
    "ids.jsonl": '[1, 2, 3]\n{"input_ids": [4, 63]}\n', "outside.jsonl": "[64]\n[-1]\n", "broken.jsonl": '{"text":\n',
}.items():
    write("calibration", name, text.encode())
npy = b"\x93NUMPY\x01\x00v\x00" + b"{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2), }".ljust(117) + b"\n"
write("calibration", "ids.npy", npy + struct.pack("<4i", 1, 2, 3, 4))
write("calibration", "truncated.npy", npy + struct.pack("<3i", 1, 2, 3))
write("calibration", "huge.npy", npy.replace(b"(2, 2)", b"(9999999, 9999999)")[:128])


def http2_frame(kind, flags, stream, payload):
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def http2():
    """What follows the preface; the first byte says in which pieces it comes."""
    headers, data, settings = http2_frame(1, 4, 1, b"h" * 40), http2_frame(0, 1, 1, b"d" * 9), http2_frame(4, 0, 0, b"")
    seeds = {
        "talk": settings + headers + data,
        "continuation": http2_frame(1, 0, 1, b"h" * 100) + http2_frame(9, 0, 1, b"h" * 100) + http2_frame(9, 4, 1, b"h"),
        "too_long": http2_frame(1, 0, 1, b"h" * 200) + http2_frame(9, 0, 1, b"h" * 101),
        "interrupted": http2_frame(1, 0, 1, b"h") + data,
        "resets": headers + http2_frame(3, 0, 1, b"code") * 12,
        "cut": headers[:7],
    }
    for name, seed in seeds.items():
        write("http2_guard", name, bytes([len(name)]) + seed)


http2()
