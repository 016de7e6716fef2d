"""How fast each recipe serves next to the f32 reference, in one run, alternating: no mode may take more than twice its time.

usage: compare_recipes.py --bench build/bench/loadtest/engine_bench --model smollm2.gguf [--recipes a,b] [--rounds 3]
                          [--threads 2] [--evaluation short.txt]

Each round runs `--scheme f32` and then every recipe, admitted with budgets out of the way. The table has medians over the
rounds: tokens/s of a 256-token prefill and of one decode stream, their ratio to f32's in the same run, and the kernels that ran.
"""
import argparse
import json
import statistics
import subprocess

RECIPES = ("w8a16 w8a16_channel w8a16_kv8 w8a16_kv8_int8 w8a16_kv4 w8a16_kv4_channel w8a16_kv4_window w8a8_dynamic w8a8_static "
           "w8a8_mix llm_int8 int8_sparse w4a8 w4a16 w4a16_hqq w4a4_rotated w4a4_svdquant nf4_double mxfp4 nvfp4 fp8_dynamic fp8_static "
           "fp8_block")


def run(bench, options, arguments):
    command = [bench, "--model", arguments.model, "--threads", str(arguments.threads), "--streams", "1", "--prompt", "256",
               "--generate", "32", "--repeat", "2", *options]
    if arguments.evaluation:
        command += ["--evaluation", arguments.evaluation]
    figures, kernels = {"prefill": [], "decode": []}, ""
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        entry = json.loads(line)
        if entry["what"] == "kernels":
            kernels = ", ".join(f"{name} {count}" for name, count in sorted(entry["layers"].items()))
        else:
            figures[entry["what"]].append(entry["tokens_per_s"])
    return {what: max(rates) for what, rates in figures.items()}, kernels


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--recipes", default=RECIPES.replace(" ", ","))
    parser.add_argument("--evaluation", help="a short text saves time: the accuracy is not looked at")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    recipes = arguments.recipes.split(",")
    rates = {name: {"prefill": [], "decode": []} for name in ["f32", *recipes]}
    kernels = {}
    for _ in range(arguments.rounds):
        for name in ["f32", *recipes]:
            options = ["--scheme", "f32", "--activation", "a16"] if name == "f32" else ["--recipe", name]
            figures, kernels[name] = run(arguments.bench, options, arguments)
            for what, rate in figures.items():
                rates[name][what].append(rate)
    middle = {name: {what: statistics.median(values) for what, values in of.items()} for name, of in rates.items()}
    print("| recipe | prefill, tokens/s | ratio to f32 | decode, tokens/s | ratio to f32 | kernels (layers) |")
    print("|---|---|---|---|---|---|")
    for name, of in middle.items():
        cells = [f"{of[what]:.0f} | {of[what] / middle['f32'][what]:.2f}" for what in ("prefill", "decode")]
        print(f"| {name} | {cells[0]} | {cells[1]} | {kernels[name]} |")
    worst = min((of[what] / middle["f32"][what], name, what) for name, of in middle.items() for what in of)
    print(f"\nslowest: {worst[1]}, {worst[2]}, {worst[0]:.2f} of f32")


if __name__ == "__main__":
    main()
