#!/usr/bin/env python3
"""Compares the engine in f32 with transformers on real models. Run by `make check-slow`.

usage: check_models.py MODEL_EVAL MODELS TEXT [--windows N]

MODELS is a model repository with smollm2/1/*.gguf and minilm/1/ (scripts/fetch_models makes one);
TEXT is plain text, for instance a part of WikiText-2. A model that is not there is skipped, loudly;
with none there the exit status is 77. Nothing here shares code with the engine: weights, tokens and
outputs of the reference all come from transformers.
"""
import argparse
import json
import math
import pathlib
import re
import subprocess
import sys
import tempfile

PERPLEXITY_TOLERANCE = 1e-3  # relative
LEAST_COSINE = 0.99999
SENTENCES = 200
CONTEXT = 512


def evaluate(tool, *arguments):
    result = subprocess.run([tool, *map(str, arguments)], stdout=subprocess.PIPE, check=True, text=True)
    return result.stdout.splitlines()


def reference_perplexity(gguf, ids, windows):
    import torch
    import transformers
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32).eval()
    total = 0.0
    with torch.no_grad():
        for w in range(windows):
            window = torch.tensor(ids[w * CONTEXT:(w + 1) * CONTEXT])
            logits = model(window[None]).logits[0, :-1].double()
            total += torch.nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
            print(f"\rreference window {w + 1}/{windows}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return math.exp(total / (windows * (CONTEXT - 1)))


def check_perplexity(tool, gguf, text, windows):
    import transformers
    with tempfile.TemporaryDirectory() as folder:
        ids_file = pathlib.Path(folder) / "ids.json"
        ours = json.loads(evaluate(tool, "perplexity", gguf, text, f"windows={windows}",
                                   f"context={CONTEXT}", f"ids={ids_file}")[-1])
        ids = json.loads(ids_file.read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    theirs = tokenizer(text.read_text(), add_special_tokens=False)["input_ids"]
    same = ids == theirs
    reference = reference_perplexity(gguf, theirs, ours["windows"])
    difference = ours["perplexity"] / reference - 1
    print(f"{gguf.name}: perplexity {ours['perplexity']:.5f}, transformers {reference:.5f}, difference "
          f"{difference:+.2e} (tolerance {PERPLEXITY_TOLERANCE:.0e}), {ours['scored']} positions in "
          f"{ours['windows']} windows of {CONTEXT}; token ids {'equal' if same else 'DIFFER'}")
    return same and abs(difference) < PERPLEXITY_TOLERANCE


def sentences(text):
    found = re.findall(r"[A-Z][^.=\n]{20,300}\.", text.read_text())
    return [s.strip() for s in found[:SENTENCES]]


def check_embeddings(tool, model_path, text):
    import torch
    import transformers
    chosen = sentences(text)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(chosen) + "\n")
        file.flush()
        ours = torch.tensor([json.loads(line) for line in evaluate(tool, "embed", model_path, file.name)],
                            dtype=torch.float64)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_path)
    model = transformers.AutoModel.from_pretrained(model_path, dtype=torch.float32).eval()
    theirs = []
    with torch.no_grad():
        for sentence in chosen:
            hidden = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
            theirs.append(torch.nn.functional.normalize(hidden.mean(0), dim=0).double())
    theirs = torch.stack(theirs)
    cosine = torch.nn.functional.cosine_similarity(ours, theirs)
    worst = (ours - theirs).abs().max().item()
    print(f"{model_path}: least cosine {cosine.min():.9f} over {len(chosen)} sentences (bound {LEAST_COSINE}), "
          f"largest difference {worst:.1e}")
    return len(chosen) == SENTENCES and cosine.min().item() >= LEAST_COSINE


def main():  # OMP_NUM_THREADS=1 helps the reference on a busy machine
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tool", type=pathlib.Path)
    parser.add_argument("models", type=pathlib.Path)
    parser.add_argument("text", type=pathlib.Path)
    parser.add_argument("--windows", type=int, default=0, help="0 = the whole text")
    args = parser.parse_args()
    ran, good = 0, True
    gguf = sorted(args.models.glob("smollm2/**/*.gguf"))
    minilm = sorted(args.models.glob("minilm/**/config.json"), key=lambda p: len(p.parts))
    if gguf:
        ran, good = ran + 1, check_perplexity(args.tool, gguf[0], args.text, args.windows) and good
    else:
        print(f"SKIPPED perplexity: no smollm2/**/*.gguf under {args.models}")
    if minilm:
        ran, good = ran + 1, check_embeddings(args.tool, minilm[0].parent, args.text) and good
    else:
        print(f"SKIPPED embeddings: no minilm/**/config.json under {args.models}")
    if not ran:
        return 77
    print("check-slow:", "passed" if good else "FAILED")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
