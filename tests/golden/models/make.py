#!/usr/bin/env python3
"""Tiny random checkpoints of every supported architecture, with outputs computed by transformers.

    pip install torch==2.13.0 transformers==5.23.0 safetensors
    python3 tests/golden/models/make.py            # rewrites the folders beside this script

Each folder NAME holds what a user would have (config.json, model.safetensors, for sentence
embeddings modules.json and 1_Pooling/config.json) and
  golden.json  {"made_by": versions, "seed": n, "sequences": [{"tokens": [...], "types": [...]}]}
  golden.f32   little-endian f32, sequence after sequence: decoders logits [tokens, vocab], encoders
               one row [hidden] or [labels]
Weights are random (seed below) but scaled so that attention is far from uniform and logits spread.
Computed in float32 with eager attention, no cache, one sequence at a time.
Made on 2026-11-22. Never regenerate to make a test pass.
"""
import json
import pathlib

import torch
import transformers as tf

SEED = 20261122
HERE = pathlib.Path(__file__).parent
VOCAB = 96
DECODER = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
               num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96,
               tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=0)
ENCODER = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=56, num_hidden_layers=2,
               num_attention_heads=4, max_position_embeddings=64, pad_token_id=0)
DISTIL = dict(vocab_size=VOCAB, dim=32, hidden_dim=56, n_layers=2, n_heads=4,
              max_position_embeddings=64, pad_token_id=0)
LABELS = {0: "negative", 1: "neutral", 2: "positive"}


def rope(rope_type, **more):
    return {"rope_type": rope_type, **more}


def decoders():
    llama, llama_config = tf.LlamaForCausalLM, tf.LlamaConfig
    yield "llama2", llama, llama_config(**(DECODER | dict(num_key_value_heads=4)))
    yield "llama3", llama, llama_config(**DECODER, rope_parameters=rope(
        "llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=64))
    yield "llama_linear", llama, llama_config(**DECODER, rope_parameters=rope(
        "linear", rope_theta=10000.0, factor=4.0))
    yield "llama_yarn", llama, llama_config(**(DECODER | dict(num_attention_heads=2, head_dim=16)),
                                            rope_parameters=rope(
        "yarn", rope_theta=10000.0, factor=3.0, original_max_position_embeddings=32))
    yield "llama_bias", llama, llama_config(**DECODER, attention_bias=True, mlp_bias=True)
    yield "smollm", llama, llama_config(**(DECODER | dict(
        hidden_size=36, num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True)))
    yield "mistral", tf.MistralForCausalLM, tf.MistralConfig(
        **(DECODER | dict(head_dim=12)), sliding_window=11)
    yield "qwen2", tf.Qwen2ForCausalLM, tf.Qwen2Config(
        **(DECODER | dict(tie_word_embeddings=True)), use_sliding_window=True, sliding_window=9,
        max_window_layers=1)
    yield "qwen3", tf.Qwen3ForCausalLM, tf.Qwen3Config(**(DECODER | dict(head_dim=16)))


def encoders():
    labels = dict(id2label=LABELS, label2id={v: k for k, v in LABELS.items()})
    roberta = ENCODER | dict(type_vocab_size=1, pad_token_id=1, max_position_embeddings=66)
    yield "bert_mean", tf.BertModel, tf.BertConfig(**ENCODER), ("mean", True)
    yield "bert_cls", tf.BertModel, tf.BertConfig(**ENCODER, hidden_act="gelu_new"), ("cls", False)
    yield "distilbert", tf.DistilBertModel, tf.DistilBertConfig(**DISTIL), ("mean", False)
    yield "roberta", tf.RobertaModel, tf.RobertaConfig(**roberta), ("cls", True)
    yield ("bert_classifier", tf.BertForSequenceClassification, tf.BertConfig(**ENCODER, **labels),
           None)
    yield ("distilbert_classifier", tf.DistilBertForSequenceClassification,
           tf.DistilBertConfig(**DISTIL, **labels, activation="relu"), None)
    yield ("roberta_classifier", tf.RobertaForSequenceClassification,
           tf.RobertaConfig(**roberta, **labels), None)


def randomize(model, generator):
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:
            p.data = noise * 0.2 + (1.0 if "norm" in name.lower() and name.endswith("weight") else 0)
        elif "embed" in name:
            p.data = noise * 0.7
        else:
            p.data = noise * 1.4 / p.shape[1] ** 0.5


def sequences(lengths, generator):
    return [torch.randint(3, VOCAB, (n,), generator=generator) for n in lengths]


def write(folder, model, dtype, items, outputs):
    model.to(dtype).save_pretrained(folder)
    for extra in ("generation_config.json",):
        (folder / extra).unlink(missing_ok=True)
    made_by = {"transformers": tf.__version__, "torch": torch.__version__.split("+")[0]}
    (folder / "golden.json").write_text(json.dumps(
        {"made_by": made_by, "seed": SEED, "sequences": items}) + "\n")
    flat = torch.cat([o.float().flatten() for o in outputs])
    (folder / "golden.f32").write_bytes(flat.numpy().astype("<f4").tobytes())
    print(folder.name, [tuple(o.shape) for o in outputs], "spread %.2f" % flat.std())


def rounded(model, dtype):
    """The weights as the file will hold them; rotary frequencies are buffers and stay f32."""
    for p in model.parameters():
        p.data = p.data.to(dtype).float()
    return model.eval()


def make_decoder(name, model_class, config, dtype):
    generator = torch.Generator().manual_seed(SEED)
    config._attn_implementation = "eager"
    model = model_class(config)
    randomize(model, generator)
    model.tie_weights()
    model = rounded(model, dtype)
    tokens = sequences([1, 23, 42], generator)
    with torch.no_grad():
        outputs = [model(t[None], use_cache=False).logits[0] for t in tokens]
    write(HERE / name, model, dtype, [{"tokens": t.tolist()} for t in tokens], outputs)


def make_encoder(name, model_class, config, pooling):
    generator = torch.Generator().manual_seed(SEED)
    config._attn_implementation = "eager"
    model = model_class(config)
    randomize(model, generator)
    model = rounded(model, torch.float32)
    tokens = sequences([1, 17, 40], generator)
    segments = getattr(config, "type_vocab_size", 1) == 2
    items, outputs = [], []
    for t in tokens:
        types = (torch.arange(len(t)) >= len(t) // 2).long() if segments else None
        more = {"token_type_ids": types[None]} if segments else {}
        items.append({"tokens": t.tolist(), "types": types.tolist() if segments else []})
        with torch.no_grad():
            result = model(t[None], **more)
        if pooling is None:
            outputs.append(result.logits[0])
            continue
        hidden = result.last_hidden_state[0]
        row = hidden.mean(0) if pooling[0] == "mean" else hidden[0]
        outputs.append(torch.nn.functional.normalize(row, dim=0) if pooling[1] else row)
    folder = HERE / name
    write(folder, model, torch.float32, items, outputs)
    if pooling is None:
        return
    modules = ["Transformer", "Pooling"] + ["Normalize"] * pooling[1]
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({
        "word_embedding_dimension": 32, "pooling_mode_cls_token": pooling[0] == "cls",
        "pooling_mode_mean_tokens": pooling[0] == "mean"}) + "\n")
    (folder / "modules.json").write_text(json.dumps([
        {"idx": i, "name": str(i), "path": f"{i}_{m}" if i else "",
         "type": f"sentence_transformers.models.{m}"} for i, m in enumerate(modules)]) + "\n")


if __name__ == "__main__":
    for i, (name, model_class, config) in enumerate(decoders()):
        make_decoder(name, model_class, config, torch.bfloat16 if i % 2 else torch.float32)
    for case in encoders():
        make_encoder(*case)
