"""Assay's engine next to llama.cpp on the same weights, in one run, alternating.

usage: compare_llama_cpp.py --bench build/release/loadtest/engine_bench --gguf MODEL.gguf [--threads 2] [--rounds 7]

llama.cpp comes from PyPI (`pip install llama-cpp-python`, compiled with its native flags) and runs its own Q8_0, made here
by requantizing the GGUF; Assay runs int8_channel weights made from the same file. Both run as libraries, without a
network. Each round runs both, in turns first; the table holds medians over the rounds and their ratio.
"""
import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile

PEER = r"""
import ctypes, json, sys, time
from llama_cpp import llama_cpp as L
path, threads, streams, prompt, generate = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
L.llama_backend_init()
silent = L.llama_log_callback(lambda level, text, user: None)
L.llama_log_set(silent, None)
model = L.llama_model_load_from_file(path.encode(), L.llama_model_default_params())
params = L.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 16384, 2048, 512, 32
params.n_threads = params.n_threads_batch = threads
params.flash_attn_type = 1
params.kv_unified = True
context = L.llama_init_from_model(model, params)
memory = L.llama_get_memory(context)
batch = L.llama_batch_init(2048, 0, 1)

def decode(items):
    batch.n_tokens = len(items)
    for i, (token, position, sequence, wants_logits) in enumerate(items):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, position, 1, wants_logits
        batch.seq_id[i][0] = sequence
    assert L.llama_decode(context, batch) == 0

def run(n, prompt_tokens, steps):
    L.llama_memory_clear(memory, True)
    start = time.perf_counter()
    for s in range(n):
        decode([(100 + (i * 37 + s) % 4000, i, s, int(i == prompt_tokens - 1)) for i in range(prompt_tokens)])
    L.llama_synchronize(context)
    middle = time.perf_counter()
    for step in range(steps):
        decode([(200 + (step * 13 + s) % 4000, prompt_tokens + step, s, 1) for s in range(n)])
    L.llama_synchronize(context)
    return middle - start, time.perf_counter() - middle

run(2, 64, 4)
print(json.dumps({"what": "prefill", "streams": 1, "tokens_per_s": prompt / run(1, prompt, 0)[0]}))
for n in streams:
    print(json.dumps({"what": "decode", "streams": n, "tokens_per_s": n * generate / run(n, 16, generate)[1]}))
"""


def requantize(source, target):
    import llama_cpp
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0
    params.allow_requantize = True
    if llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params)) != 0:
        sys.exit(f"llama.cpp cannot requantize {source}")


def measure(command, results):
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in output.splitlines():
        row = json.loads(line)
        results.setdefault((row["what"], row["streams"]), []).append(row["tokens_per_s"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True)
    parser.add_argument("--gguf", required=True)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--scheme", default="int8_group:g32", help="scheme of Assay's weights, embedding table included")
    parser.add_argument("--activation", default="a16", help="activation mode of Assay's weights")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--streams", default="1,8,32")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--generate", type=int, default=48)
    args = parser.parse_args()
    streams = [int(n) for n in args.streams.split(",")]
    ours, theirs = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        q8 = os.path.join(folder, "q8_0.gguf")
        requantize(args.gguf, q8)
        assay = [args.bench, "--model", args.gguf, "--threads", str(args.threads), "--streams", args.streams, "--scheme", args.scheme,
                 "--activation", args.activation,
                 "--prompt", str(args.prompt), "--generate", str(args.generate), "--repeat", "1"]
        peer = [sys.executable, "-c", PEER, q8, str(args.threads), json.dumps(streams), str(args.prompt), str(args.generate)]
        for round_number in range(args.rounds):
            pair = [(assay, ours), (peer, theirs)]
            for command, results in pair if round_number % 2 == 0 else reversed(pair):
                measure(command, results)
            print(f"round {round_number + 1} of {args.rounds} done", file=sys.stderr)
    import llama_cpp
    print(f"scheme={args.scheme} activation={args.activation} threads={args.threads} rounds={args.rounds} llama-cpp-python={llama_cpp.__version__}")
    print(f"{'measurement':<22}{'assay tok/s':>14}{'llama.cpp Q8_0':>16}{'ratio':>8}")
    for key in ours:
        mine, other = statistics.median(ours[key]), statistics.median(theirs[key])
        name = f"{key[0]} {args.prompt}" if key[0] == "prefill" else f"{key[0]}, {key[1]} streams"
        print(f"{name:<22}{mine:>14.1f}{other:>16.1f}{mine / other:>8.2f}")


if __name__ == "__main__":
    main()
