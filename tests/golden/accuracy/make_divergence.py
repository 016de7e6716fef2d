"""Goldens of quant/divergence and quant/estimate: numpy 2.4.6, 2026-11-22.

python make_divergence.py > divergence.json
Independent of Assay: definitions transcribed from llama.cpp (tools/perplexity/perplexity.cpp, functions log_softmax and
kl_divergence) into float64. "llama_cpp" holds the same figures through its file of base logits, log p in 16 bit.
The logits are not stored: both sides draw them from splitmix64, as multiples of 2^-20, which float32 holds exactly.
"""

import json

import numpy as np

VOCAB, LENGTHS, SEED = 257, [61, 90, 33, 72, 120, 5, 48], 7
MASK = (1 << 64) - 1
KL_LEVELS = [1, .999, .99, .95, .9, .5, .1, .05, .01, .001, 0]
P_LEVELS = [1, .999, .99, .95, .9, .75, .5, .25, .1, .05, .01, .001, 0]


class SplitMix:
    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)


def draw(random):
    """Per document: reference logits in [-8, 8), candidate = reference + noise in [-1/4, 1/4), next token."""
    documents = []
    for length in LENGTHS:
        reference, candidate = np.empty((length, VOCAB)), np.empty((length, VOCAB))
        following = np.empty(length, int)
        for i in range(length):
            for v in range(VOCAB):
                reference[i, v] = ((random.next() >> 40) - 2**23) / 2**20
                candidate[i, v] = reference[i, v] + ((random.next() >> 45) - 2**18) / 2**20
            following[i] = random.next() % VOCAB
        documents.append((reference, candidate, following))
    return documents


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def rounded_to_16_bit(logits):
    """What llama.cpp's file of base logits gives back: log p."""
    top = logits.max(axis=1, keepdims=True)
    low = np.maximum(logits.min(axis=1, keepdims=True), top - 16)
    log_sum = np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
    scale = (top - low) / 65535
    codes = np.where(logits > low, np.rint((logits - low) / scale), 0)
    return scale * codes + (low - top - log_sum)


def mean_and_uncertainty(x):
    f = x.mean()
    df = (x * x).mean() - f * f
    return [float(f), float(np.sqrt(df / (len(x) - 1))) if df > 0 and len(x) > 10 else 0.0]


def figures(log_p, log_q, following, clip):
    rows = np.arange(len(following))
    kl = (np.exp(log_p) * (log_p - log_q) * (log_p > -16 if clip else 1)).sum(axis=1)
    base, nll = -log_p[rows, following], -log_q[rows, following]
    n = len(nll)
    ln, ln_base = mean_and_uncertainty(nll), mean_and_uncertainty(base)
    cov = ((nll * base).mean() - nll.mean() * base.mean()) / (n - 1)
    ratio = [ln[0] - ln_base[0], float(np.sqrt(ln[1] ** 2 + ln_base[1] ** 2 - 2 * cov))]
    ppl, ppl_base = np.exp(ln[0]), np.exp(ln_base[0])
    unc, unc_base = ppl * ln[1], ppl_base * ln_base[1]
    delta = np.exp(-nll) - np.exp(-base)
    mse = mean_and_uncertainty(delta**2)
    rms = np.sqrt(mse[0])
    same = float((log_p.argmax(axis=1) == log_q.argmax(axis=1)).mean())
    return {
        "positions": n,
        "perplexity": [float(ppl), float(unc)], "perplexity_reference": [float(ppl_base), float(unc_base)],
        "log_perplexity_correlation": float(cov / (ln[1] * ln_base[1])),
        "log_perplexity_ratio": ratio,
        "perplexity_ratio": [float(np.exp(ratio[0])), float(np.exp(ratio[0]) * ratio[1])],
        "perplexity_difference": [float(ppl - ppl_base), float(np.sqrt(unc**2 + unc_base**2 - 2 * ppl * ppl_base * cov))],
        "mean_kl": mean_and_uncertainty(kl), "kl_quantiles": [float(np.quantile(kl, q)) for q in KL_LEVELS],
        "mean_delta_p": mean_and_uncertainty(delta), "rms_delta_p": [float(rms), float(0.5 / rms * mse[1])],
        "delta_p_quantiles": [float(np.quantile(delta, q)) for q in P_LEVELS],
        "same_top": [same, float(np.sqrt(same * (1 - same) / (n - 1)))],
    }, kl, nll - base


def bootstrap(numerators, denominators, seed=20261122, resamples=2000):
    random, n, ratios = SplitMix(seed), len(numerators), []
    for _ in range(resamples):
        chosen = [random.next() % n for _ in range(n)]
        ratios.append(sum(numerators[i] for i in chosen) / sum(denominators[i] for i in chosen))
    return [float(np.quantile(ratios, 0.025)), float(np.quantile(ratios, 0.975))]


def main():
    documents = draw(SplitMix(SEED))
    reference = np.concatenate([d[0] for d in documents])
    following = np.concatenate([d[2] for d in documents])
    log_q = log_softmax(np.concatenate([d[1] for d in documents]))
    exact, kl, dnll = figures(log_softmax(reference), log_q, following, clip=False)
    stored, _, _ = figures(rounded_to_16_bit(reference), log_q, following, clip=True)
    ends = np.cumsum(LENGTHS)[:-1]
    kl_documents = [float(part.mean()) for part in np.split(kl, ends)]
    dnll_documents = [float(part.sum()) for part in np.split(dnll, ends)]
    ratio = sum(dnll_documents) / sum(LENGTHS)
    residual = np.array(dnll_documents) - ratio * np.array(LENGTHS)
    t = 2.4469118511449786  # scipy.stats.t.ppf(0.975, 6)
    half = t * np.sqrt((residual**2).sum() / 6 / 7) / np.mean(LENGTHS)
    print(json.dumps({
        "seed": SEED, "vocab": VOCAB, "lengths": LENGTHS, "exact": exact, "llama_cpp": stored,
        "mean_kl_bootstrap": bootstrap(kl_documents, [1.0] * len(LENGTHS)),
        "log_perplexity_ratio": [float(ratio), float(ratio - half), float(ratio + half)],
        "log_perplexity_ratio_bootstrap": bootstrap(dnll_documents, LENGTHS),
    }, indent=1))


if __name__ == "__main__":
    main()
