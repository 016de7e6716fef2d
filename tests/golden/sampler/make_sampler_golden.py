#!/usr/bin/env python3
"""Expected distributions of the sampler's filters, from the definitions, in float64 numpy.

Made with: python3 make_sampler_golden.py > sampler.json   (numpy 2.x, seed 20261122, 2026-11-22)

Each case has logits (float32 values), the tokens seen (prompt, generated), the parameters, and the
probability of every token after penalties, temperature, top-k, top-p and min-p. Cases whose cut
lies within 1e-4 of a threshold are not used: there float32 may rightly differ.
"""
import json
import sys

import numpy as np


def distribution(logits, prompt, generated, p):
    x = logits.astype(np.float64).copy()
    for t in set(prompt) | set(generated):
        x[t] = x[t] / p["repetition_penalty"] if x[t] > 0 else x[t] * p["repetition_penalty"]
    for t in set(generated):
        x[t] -= p["presence_penalty"] + p["frequency_penalty"] * generated.count(t)
    x /= p["temperature"]
    probability = np.exp(x - x.max())
    probability /= probability.sum()
    order = np.lexsort((np.arange(len(x)), -x))  # by logit, then by id
    keep = np.zeros(len(x), bool)
    kept = order[: p["top_k"]] if p["top_k"] > 0 else order
    cumulative = np.cumsum(probability[kept]) / probability[kept].sum()
    margin = 1.0
    if p["top_p"] < 1:
        count = int(np.searchsorted(cumulative, p["top_p"])) + 1
        margin = np.abs(cumulative - p["top_p"]).min()
        kept = kept[:count]
    relative = probability[kept] / probability.max()
    if p["min_p"] > 0:
        margin = min(margin, np.abs(relative - p["min_p"]).min())
        kept = kept[relative >= p["min_p"]]
    keep[kept] = True
    probability = np.where(keep, probability, 0)
    return probability / probability.sum(), margin


def main():
    rng = np.random.default_rng(20261122)
    cases = []
    while len(cases) < 60:
        vocab = int(rng.integers(2, 90))
        logits = (rng.normal(0, rng.choice([0.5, 2, 6]), vocab)).round(4).astype(np.float32)
        if rng.random() < 0.3:
            logits = logits.round(0)  # many ties
        prompt = rng.integers(0, vocab, rng.integers(1, 12)).tolist()
        generated = rng.integers(0, vocab, rng.integers(0, 12)).tolist()
        p = dict(
            temperature=float(rng.choice([0.3, 0.7, 1.0, 1.7])),
            top_k=int(rng.choice([0, 1, 3, 20, 200])),
            top_p=float(rng.choice([1.0, 0.95, 0.6, 0.1])),
            min_p=float(rng.choice([0.0, 0.0, 0.05, 0.5])),
            repetition_penalty=float(rng.choice([1.0, 1.3, 0.8])),
            presence_penalty=float(rng.choice([0.0, 0.5, -0.5])),
            frequency_penalty=float(rng.choice([0.0, 0.25])),
        )
        probability, margin = distribution(logits, prompt, generated, p)
        if margin < 1e-4 or (np.count_nonzero(probability) == 1 and rng.random() < 0.9):
            continue
        cases.append(dict(logits=[float(v) for v in logits], prompt=prompt, generated=generated,
                          params=p, probability=[float(f"{v:.9g}") for v in probability]))
    json.dump(dict(source=__doc__.split("\n")[2], cases=cases), sys.stdout, separators=(",", ":"))


main()
