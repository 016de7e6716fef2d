"""Goldens of quant/accuracy: numpy 2, scipy 1; seed 20261122.

python make_accuracy.py > accuracy.json
Independent of Assay: KL by scipy.special.rel_entr, intervals by scipy.stats.t.interval, quantiles by numpy, documents
resampled with splitmix64 as quant/estimate.h says.
"""

import json

import numpy as np
from scipy import special, stats

VOCAB, LENGTHS = 19, [7, 5, 9, 6]


def main():
    rng = np.random.default_rng(20261122)
    documents, kl_all, nll_ref, nll_cand, kl_doc, top_doc = [], [], [], [], [], []
    for length in LENGTHS:
        ref = np.float32(rng.normal(0, 3, (length, VOCAB)))
        cand = np.float32(ref + rng.normal(0, 0.4, (length, VOCAB)))
        nxt = rng.integers(0, VOCAB, length)
        r, c = ref.astype(np.float64), cand.astype(np.float64)
        p, q = special.softmax(r, axis=1), special.softmax(c, axis=1)
        kl = special.rel_entr(p, q).sum(axis=1)
        same = r.argmax(axis=1) == c.argmax(axis=1)
        rows = np.arange(length)
        nll_ref += list(-special.log_softmax(r, axis=1)[rows, nxt])
        nll_cand += list(-special.log_softmax(c, axis=1)[rows, nxt])
        kl_all += list(kl)
        kl_doc.append(kl.mean())
        top_doc.append(same.mean())
        documents.append({"reference": ref.tolist(), "candidate": cand.tolist(), "next": nxt.tolist(),
                          "kl": kl.tolist(), "same_top1": same.tolist()})

    def estimate(values):
        low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
        return {"mean": float(np.mean(values)), "low": float(low), "high": float(high)}

    # Bootstrap of the 99.9 % quantile: every resample is spelled out.
    starts = np.cumsum([0] + LENGTHS)
    parts = [kl_all[starts[d]:starts[d + 1]] for d in range(len(LENGTHS))]
    state, mask, resampled = 20261122, (1 << 64) - 1, []
    for _ in range(2000):
        values = []
        for _ in parts:
            state = (state + 0x9e3779b97f4a7c15) & mask
            z = ((state ^ (state >> 30)) * 0xbf58476d1ce4e5b9) & mask
            z = ((z ^ (z >> 27)) * 0x94d049bb133111eb) & mask
            values += parts[(z ^ (z >> 31)) % len(parts)]
        resampled.append(np.quantile(values, 0.999))
    kl_p999 = {"mean": float(np.quantile(kl_all, 0.999)), "low": float(np.quantile(resampled, 0.025)),
               "high": float(np.quantile(resampled, 0.975))}

    a, b = np.float32(rng.normal(0, 1, 33)), np.float32(rng.normal(0, 1, 33))
    noisy = np.float32(a + rng.normal(0, 0.01, 33))
    cosine = np.dot(a.astype(np.float64), b.astype(np.float64)) / np.linalg.norm(a.astype(np.float64)) / np.linalg.norm(b.astype(np.float64))
    error = a.astype(np.float64) - noisy.astype(np.float64)
    print(json.dumps({
        "documents": documents,
        "mean_kl": estimate(kl_doc), "top1": estimate(top_doc),
        "kl_p999": kl_p999, "kl_median": float(np.quantile(kl_all, 0.5)), "kl_max": float(max(kl_all)),
        "perplexity_reference": float(np.exp(np.mean(nll_ref))), "perplexity": float(np.exp(np.mean(nll_cand))),
        "perplexity_ratio": float(np.exp(np.mean(nll_cand)) / np.exp(np.mean(nll_ref))),
        "t975": {str(n): float(stats.t.ppf(0.975, n)) for n in (1, 2, 7, 13, 30, 31, 40, 100, 5000)},
        "a": a.tolist(), "b": b.tolist(), "noisy": noisy.tolist(),
        "cosine": float(cosine), "sqnr_db": float(10 * np.log10((a.astype(np.float64) ** 2).sum() / (error ** 2).sum())),
    }))


if __name__ == "__main__":
    main()
