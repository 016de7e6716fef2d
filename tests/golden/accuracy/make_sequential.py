"""Goldens of quant/sequential: numpy 2; seed 20261130.

python make_sequential.py > sequential.json
Written from the papers' formulas, with whole arrays instead of running sums: mean and variance before every number are
computed anew from all numbers before it (and the made-up first one).
"""

import json

import numpy as np

LIMIT, ALPHA, MARGIN, COUNT = 0.05, 0.01, 1.1, 300
AT = [1, 2, 3, 10, 50, 100, 200, 299]


def before(x, first, variance):
    """Mean and variance that are known before each number; squares are of the error that was made at the time."""
    means, variances, errors = [], [], [variance]
    for i in range(len(x)):
        seen = np.concatenate([[first], x[:i]])
        means.append(seen.mean())
        variances.append(np.mean(errors))
        errors.append((x[i] - means[-1]) ** 2)
    return np.array(means), np.array(variances)


def wealth(x):
    mean, variance = before(x, LIMIT, LIMIT ** 2)
    rise = mean - LIMIT
    bet = np.where(rise > 0, np.clip(rise / (variance + rise ** 2), 0, 0.5 / LIMIT), 0)
    return np.cumsum(np.log(1 + bet * (x - LIMIT)))


def band(x):
    mean, variance = before(x, 0.5, 0.25)
    t = np.arange(1, len(x) + 1)
    log = np.log(2 / ALPHA)
    lam = np.minimum(0.5, np.sqrt(2 * log / (variance * t * np.log(1 + t))))
    psi = -np.log(1 - lam) - lam
    half = (log + np.cumsum(psi * (x - mean) ** 2)) / np.cumsum(lam)
    centre = np.cumsum(lam * x) / np.cumsum(lam)
    mean = np.cumsum(x) / np.arange(1, len(x) + 1)
    return np.maximum(np.minimum(centre - half, mean), 0), np.minimum(np.maximum(centre + half, mean), 1)


def cusum(x, sign, limit):
    _, variance = before(x, limit, limit ** 2)
    shift = 0.5 * limit
    cap = 0.5 / (limit if sign > 0 else 1 - limit)
    steps = np.log(1 + np.minimum(shift / (variance + shift ** 2), cap) * sign * (x - limit))
    out, g = [], 0.0
    for step in steps:
        g = max(g, 0.0) + step
        out.append(g)
    return np.array(out)


def main():
    rng = np.random.default_rng(20261130)
    x = np.minimum(1, 0.07 * np.exp(rng.normal(0, 1, COUNT) - 0.5))
    low, high = band(x)
    above, change, back = wealth(x), cusum(x, 1, LIMIT * MARGIN), cusum(0.3 * x, -1, LIMIT)
    print(json.dumps({"limit": LIMIT, "alpha": ALPHA, "margin": MARGIN, "x": x.tolist(), "at": AT,
                      "above": [above[i] for i in AT], "back_of_0.3x": [back[i] for i in AT], "change": [change[i] for i in AT],
                      "low": [low[i] for i in AT], "high": [high[i] for i in AT]}))


if __name__ == "__main__":
    main()
