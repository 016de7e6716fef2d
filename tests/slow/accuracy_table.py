"""Every recipe on real models, and llama.cpp's own quantizations of the same weights: the tables of docs/accuracy.md.

usage: accuracy_table.py --build build/release --model twin=TWIN.gguf [--model NAME=PATH ...] [--recipes a,b] [--peer twin]
                         [--eight-bit NAME] [--json FILE]

Each row is one run of `assay verify MODEL --recipe R`: the process's own figures, its wall time and its peak resident memory.
Budgets are out of the way, so that no layer falls back and every recipe is measured as it is written; `inside` says which built-in
budgets the figures keep to. Recipes that search (auto) run under the built-in policy, whose budget they search for. Ladders are left
out: their rungs have rows of their own. --eight-bit NAME: of that model only the 8-bit recipes (it lies on a 4-bit grid already).
--peer NAME adds llama.cpp (`llama-cpp-python` of this Python) on that GGUF: Q8_0, Q4_K_M and Q4_0 made from it, KL and top-1
against llama.cpp's own f32 logits on the token ids that Assay judges the model on (`model_eval evaluation`). KL is in nats per
token; intervals are Assay's, over documents (Student's t; of the 99.9 % quantile the bootstrap's).
"""
import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

# Two-sided 95 % quantiles of Student's t for 1 to 30 degrees of freedom (Abramowitz and Stegun, table 26.10).
STUDENT = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110,
           2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042]
PEERS = {"Q8_0": "LLAMA_FTYPE_MOSTLY_Q8_0", "Q4_K_M": "LLAMA_FTYPE_MOSTLY_Q4_K_M", "Q4_0": "LLAMA_FTYPE_MOSTLY_Q4_0"}


# Nothing is refused for its accuracy.
MEASURE = """version: 1
recipes: {plain: {scheme: int8_channel}}
budgets: {measure: {mean_kl: 100, top1: 0, perplexity_ratio: 1000000, cosine: 0, label_agreement: 0}}
rules: [{name: measure, reason: nothing is refused, when: {device: cpu}, recipe: plain, budget: measure}]
"""
# quant/policy/default.yaml
BUDGETS = {"eight_bit": (0.01, 0.95, 1.01, 0.995), "four_bit": (0.03, 0.92, 1.03, 0.99)}


def verify(assay, model, recipe):
    """The report of one admission, its seconds and its peak bytes."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.NamedTemporaryFile("w", suffix=".yaml") as policy:
        policy.write(MEASURE)
        policy.flush()
        command = [assay, "verify", model, "--recipe", recipe, "--json"]
        if recipe != "auto":
            command += ["--policy", policy.name]
        began = time.monotonic()
        process = subprocess.Popen(command, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        took = time.monotonic() - began
        out.seek(0), err.seek(0)
        text, problem = out.read().decode(), err.read().decode()
    try:
        return json.loads(text), took, usage.ru_maxrss * 1024
    except json.JSONDecodeError:
        return {"error": problem.strip().splitlines()[-1] if problem.strip() else f"exit status {status}"}, took, 0


def inside(report):
    v = report["verification"]
    if report["verdict"] != "admitted" and v["defects"]:
        return "defect"
    for name, (kl, top1, ratio, cosine) in BUDGETS.items():
        if report["task"] == "generate":
            high = max(v["mean_kl"]["high"], v["mean_kl_bootstrap"]["high"])
            good = high <= kl and v["top1_agreement"]["mean"] >= top1 and v["perplexity_ratio"] <= ratio
        else:
            good = min(v["cosine"]["low"], v["cosine_bootstrap"]["low"]) >= cosine
        if good:
            return name
    return "none"


def row(name, report, took, peak):
    if "error" in report:
        return f"| {name} | {report['error'][:110]} |"
    v = report["verification"]
    if v["documents"] == 0:  # refused before anything was measured
        return f"| {name} | {report['reason'][:150]} |"
    linear = [l for l in report["layers"]]
    bits = 8 * sum(l["bytes_stored"] for l in linear) / max(1, sum(l["n"] * l["k"] for l in linear))
    cells = [name, inside(report), f"{bits:.2f}", f"{report['bytes_stored'] / 1e6:.1f}", f"{report['bytes'] / 1e6:.1f}"]
    if report["task"] == "generate":
        kl, worst = v["mean_kl"], v["kl_p999"]
        cells += [f"{kl['mean']:.5f} [{kl['low']:.5f}, {kl['high']:.5f}]",
                  f"{worst['mean']:.3f} [{worst['low']:.3f}, {worst['high']:.3f}]",
                  f"{100 * v['top1_agreement']['mean']:.2f}", f"{v['perplexity_ratio']:.4f}"]
    else:
        c = v["cosine"]
        cells += [f"{c['mean']:.6f} [{c['low']:.6f}, {c['high']:.6f}]", f"{v['cosine_min']:.5f}"]
    cells += [f"{100 * report['fallback_fraction']:.0f}", f"{took:.0f}", f"{peak / 1e6:.0f}"]
    return "| " + " | ".join(cells) + " |"


HEADS = {
    "generate": "| recipe | inside | bits per weight | MB | resident | mean KL [95 %] | 99.9 % KL [95 %] | top-1 % | ppl ratio "
                "| layers kept % | s | peak MB |",
    "embed": "| recipe | inside | bits per weight | MB | resident | mean cosine [95 %] | smallest | layers kept % | s | peak MB |",
}


class Llama:
    """Logits of llama.cpp, window by window, in f32 but for the weights."""

    def __init__(self, path, threads=2):
        from llama_cpp import llama_cpp as L
        self.L = L
        L.llama_backend_init()
        self.silent = L.llama_log_callback(lambda level, text, user: None)
        L.llama_log_set(self.silent, None)
        self.model = L.llama_model_load_from_file(str(path).encode(), L.llama_model_default_params())
        params = L.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = 512, 512, 512, 1
        params.n_threads = params.n_threads_batch = threads
        self.context = L.llama_init_from_model(self.model, params)
        self.vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(self.model))
        self.batch = L.llama_batch_init(512, 0, 1)

    def logits(self, ids):
        L, batch = self.L, self.batch
        L.llama_memory_clear(L.llama_get_memory(self.context), True)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, 1
            batch.seq_id[i][0] = 0
        assert L.llama_decode(self.context, batch) == 0
        return np.ctypeslib.as_array(L.llama_get_logits(self.context), (len(ids), self.vocab)).copy()

    def close(self):
        self.L.llama_batch_free(self.batch)
        self.L.llama_free(self.context)
        self.L.llama_model_free(self.model)


def log_softmax(x):
    x = x.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def peer_rows(gguf, windows):
    import llama_cpp
    exact = Llama(gguf)
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, ftype in PEERS.items():
            params = llama_cpp.llama_model_quantize_default_params()
            params.ftype = getattr(llama_cpp, ftype)
            files[name] = pathlib.Path(folder) / f"{name}.gguf"
            assert llama_cpp.llama_model_quantize(str(gguf).encode(), str(files[name]).encode(), ctypes.byref(params)) == 0
        for name, path in files.items():
            peer, kl, same, nll = Llama(path), [], [], [0.0, 0.0]
            for ids in windows:
                p, q = log_softmax(exact.logits(ids)[:-1]), log_softmax(peer.logits(ids)[:-1])
                kl.append((np.exp(p) * (p - q)).sum(axis=1))
                same.append(p.argmax(axis=1) == q.argmax(axis=1))
                rows = np.arange(len(ids) - 1)
                nll = [nll[0] - p[rows, ids[1:]].sum(), nll[1] - q[rows, ids[1:]].sum()]
            peer.close()
            every, count = np.concatenate(kl), sum(len(k) for k in kl)
            means = np.array([k.mean() for k in kl])
            half = STUDENT[min(len(means) - 1, len(STUDENT)) - 1] * means.std(ddof=1) / np.sqrt(len(means))
            size = path.stat().st_size
            yield name, (f"| llama.cpp {name} | | | {size / 1e6:.1f} | | {every.mean():.5f} [{every.mean() - half:.5f}, {every.mean() + half:.5f}] | "
                         f"{np.quantile(every, .999):.3f} | {100 * np.concatenate(same).mean():.2f} | {np.exp((nll[1] - nll[0]) / count):.4f} | | | |")
    exact.close()


def figure(report):
    """The one number of a row, for the table of recipes."""
    if "error" in report or report["verification"]["documents"] == 0:
        return "refused"
    v, megabytes = report["verification"], report["bytes_stored"] / 1e6
    if report["task"] == "generate":
        return f"{v['mean_kl']['mean']:.4f}, {100 * v['top1_agreement']['mean']:.1f} %, {megabytes:.1f} MB"
    return f"{v['cosine']['mean']:.5f}, {megabytes:.1f} MB"


def print_recipes(models, results):
    """Every recipe with what it reached on every model: docs/quantization.md."""
    print("\n### Recipes\n\n| recipe | " + " | ".join(models) + " |\n|---|" + "---|" * len(models))
    for recipe in dict.fromkeys(recipe for _, recipe in results):
        print(f"| `{pathlib.Path(recipe).stem}` | " + " | ".join(results.get((m, recipe), "") for m in models) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--model", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--recipes", default="", help="[all built-in ones]")
    parser.add_argument("--peer", default="", help="NAME of a model for llama.cpp")
    parser.add_argument("--eight-bit", default="", metavar="NAME")
    parser.add_argument("--json", type=pathlib.Path, help="all reports, one per line")
    args = parser.parse_args()
    assay = args.build / "cli" / "assay"
    listed = subprocess.run([assay, "recipes"], check=True, capture_output=True, text=True).stdout.splitlines()[1:]
    beside = sorted(str(p) for p in (pathlib.Path(__file__).parent / "recipes").glob("*.yaml"))  # what theory compares them with
    listed = [line.split()[0] for line in listed if "the first that passes" not in line]
    recipes = args.recipes.split(",") if args.recipes else listed + beside
    results = {}
    for name, path in (model.split("=", 1) for model in args.model):
        print(f"\n### {name}\n", flush=True)
        headed = False
        for recipe in recipes:
            if name == args.eight_bit and not pathlib.Path(recipe).stem.startswith(("auto", "w8", "llm", "fp8")):
                continue
            report, took, peak = verify(assay, path, recipe)
            if not headed and "task" in report:
                head = HEADS["generate" if report["task"] == "generate" else "embed"]
                print(head + "\n|" + "---|" * (head.count("|") - 1))
                headed = True
            print(row(pathlib.Path(recipe).stem, report, took, peak), flush=True)
            results[name, recipe] = figure(report)
            if args.json:
                with args.json.open("a") as out:
                    out.write(json.dumps({"model": name, "recipe": recipe, "seconds": took, "peak_bytes": peak, "report": report}) + "\n")
        if name == args.peer:
            tool = args.build / "tests" / "slow" / "model_eval"
            windows = json.loads(subprocess.run([tool, "evaluation", path, "-"], check=True, capture_output=True, text=True).stdout)
            for _, line in peer_rows(path, windows):
                print(line, flush=True)
    print_recipes([model.split("=", 1)[0] for model in args.model], results)


if __name__ == "__main__":
    sys.exit(main())
