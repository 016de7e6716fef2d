"""Goldens of quant/methods: torch 2.13.0 (CPU), numpy 2.4.6, scipy, hqq 0.2.8, nvidia-modelopt 0.47.0; seed 20261122.

pip install torch==2.13.0 numpy scipy; pip install --no-deps hqq nvidia-modelopt
python make_methods.py > methods.json && xz -9e methods.json

From the tools themselves: torch.ao.quantization.HistogramObserver; ModelOpt's _compute_amax_entropy, _mse, _percentile
(taken from modelopt/torch/quantization/calib/histogram.py, whose package needs more than a CPU to import); hqq's proximal
optimizer. Written here in float64 from the published algorithms, for grids, options and dead channels that the tools themselves do
not have (what they compute where they do: make_tools.py): GPTQ (IST-DASLab/gptq, gptq.py) with torch.linalg, GPTAQ's correction,
SmoothQuant, AWQ's scale search, Flex Smooth, range_parm, clipping by mse and imatrix.
Inputs are small integers / 16, so that every program sees the same numbers.
"""

import ast
import base64
import json
import pathlib
import sys
from collections import Counter

import numpy as np
import torch

RNG = np.random.default_rng(20261122)
N, K, T = 16, 128, 640


def b64(array):
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def bf16(x):
    return torch.tensor(np.asarray(x, np.float32)).to(torch.bfloat16).float().numpy()


def inputs():
    """w [N, K] f32; x [T, K] correlated, with outlier channels, and x_full beside it: int8 / 16."""
    latent = RNG.normal(0, 1, (T, 24)) @ RNG.normal(0, 1, (24, K)) / 5 + 0.5 * RNG.normal(0, 1, (T, K))
    latent[:, [5, 40, 77, 101]] *= 4
    latent[:, 17] = 0  # a dead channel
    full = np.clip(np.rint(16 * latent), -128, 127).astype(np.int8)
    x = np.clip(full + RNG.integers(-2, 3, full.shape) * (full != 0), -128, 127).astype(np.int8)
    return np.float32(RNG.normal(0, 0.05, (N, K))), x, full


# --- grids, as quant/schemes draws them, in float32 ---------------------------------------------------------------------------
class Int8Channel:
    group = K

    def fit(self, w):
        return np.float32(np.abs(w).max(axis=1) / np.float32(127)), None

    def round(self, w, grid):
        return np.float32(np.clip(np.rint(np.float32(w) / grid[0]), -127, 127) * grid[0])


class Int4Group:  # int4_group:g32
    group = 32

    def fit(self, w):
        return bf16(np.abs(w).max(axis=1) / np.float32(7)), None

    def round(self, w, grid):
        return np.float32(np.clip(np.rint(np.float32(w) / grid[0]), -7, 7) * grid[0])


def nearest(w, scheme):
    out = np.empty_like(w)
    for g in range(0, w.shape[1], scheme.group):
        part = np.float32(w[:, g : g + scheme.group])
        grid = scheme.fit(part)
        out[:, g : g + scheme.group] = np.stack([scheme.round(column, grid) for column in part.T], 1)
    return out


# --- GPTQ ---------------------------------------------------------------------------------------------------------------------
def hessian(x):
    x = torch.tensor(x.astype(np.float64) / 16)
    return 2 / x.shape[0] * x.T @ x


def gptq(w, x, scheme, blocksize=128, percdamp=0.01, actorder=False, static=False, x_full=None, alpha=0.25):
    w, h = torch.tensor(w, dtype=torch.float64), hessian(x)
    dead = torch.diag(h) == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    d = None
    if x_full is not None:
        xq = torch.tensor(x.astype(np.float64) / 16)
        d = 2 / T * (torch.tensor(x_full.astype(np.float64) / 16) - xq).T @ xq
    static = static or actorder or scheme.group == K
    group = scheme.group
    grids = [scheme.fit(np.float32(w[:, i : i + group])) for i in range(0, K, group)] if static else []
    perm = torch.argsort(torch.diag(h), descending=True, stable=True) if actorder else torch.arange(K)
    w, h = w[:, perm], h[perm][:, perm]
    damp = percdamp * torch.mean(torch.diag(h))
    h = h + damp * torch.eye(K, dtype=torch.float64)
    hinv = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    p = None
    if d is not None:
        d = d[perm][:, perm]
        p = alpha * torch.triu(d @ hinv.T, diagonal=1) @ hinv
    q = torch.zeros_like(w)
    grid = None
    for i1 in range(0, K, blocksize):
        i2 = min(i1 + blocksize, K)
        w1, err1 = w[:, i1:i2].clone(), torch.zeros(N, i2 - i1, dtype=torch.float64)
        for i in range(i2 - i1):
            column = w1[:, i].clone()
            if static:
                grid = grids[int(perm[i1 + i]) // group]
            elif (i1 + i) % group == 0:
                grid = scheme.fit(np.float32(w1[:, i : i + group]))  # groups never straddle blocks here
            rounded = torch.tensor(scheme.round(np.float32(column), grid), dtype=torch.float64)
            err = (column - rounded) / hinv[i1 + i, i1 + i]
            w1[:, i:] -= err[:, None] * hinv[i1 + i, i1 + i : i2][None, :]
            if p is not None:
                w1[:, i:] += column[:, None] * p[i1 + i, i1 + i : i2][None, :]
            q[:, i1 + i], err1[:, i], w1[:, i] = rounded, err, column
        w[:, i2:] -= err1 @ hinv[i1:i2, i2:]
        if p is not None:
            w[:, i2:] += w1 @ p[i1:i2, i2:]
    return np.float32(q[:, torch.argsort(perm)].numpy())


# --- transforms ---------------------------------------------------------------------------------------------------------------
def smoothquant(w, x, alpha):
    a, b = np.abs(x).max(axis=0), np.abs(w).max(axis=0)
    return np.maximum(np.maximum(a, 1e-5) ** alpha / np.maximum(b, 1e-5) ** (1 - alpha), 1e-5)


def awq(w, x, scheme, duo):
    """AutoAWQ's grid search with the layer itself as the inspected module; group maxima for w_mean."""
    xm = np.abs(x).mean(axis=0)
    groups = np.abs(w).reshape(N, K // scheme.group, scheme.group)
    wm = (groups / (groups.max(axis=2, keepdims=True) + 1e-6)).reshape(N, K).mean(axis=0)
    best = (np.inf, None, None)
    losses = []
    for i in range(20):
        r = i / 20
        s = xm**r / (wm ** (1 - r) + 1e-4) if duo else xm**r
        s = np.maximum(s, 1e-4)
        s = np.float32(s / np.sqrt(s.max() * s.min()))
        difference = w.astype(np.float64) - nearest(np.float32(w * s), scheme).astype(np.float64) / s
        loss = ((x @ difference.T) ** 2).mean()
        losses.append(loss)
        if loss < best[0]:
            best = (loss, r, s)
    return {"loss": best[0], "ratio": best[1], "scales": b64(np.float32(best[2])), "losses": losses}


def fake_asymmetric(x, bits=8):
    low, high = min(0.0, x.min()), max(0.0, x.max())
    s = (high - low) / (2**bits - 1)
    z = np.clip(np.rint(-low / s), 0, 2**bits - 1)
    return (np.clip(np.rint(x / s) + z, 0, 2**bits - 1) - z) * s


def flex_smooth(w, x):
    a, b = np.maximum(np.abs(x).max(axis=0), 1e-5), np.maximum(np.abs(w).max(axis=0), 1e-5)
    reference = x @ w.T

    def loss(alpha, beta):
        s = np.maximum(a**alpha / b**beta, 1e-5)
        ws = w * s
        step = np.abs(ws).max(axis=1, keepdims=True) / 127
        y = fake_asymmetric(x / s) @ (np.rint(ws / step) * step).T
        return np.sqrt(((y - reference) ** 2).mean()) / np.sqrt((reference**2).mean())

    grid = [i * 0.05 for i in range(21)]
    alpha = min(grid, key=lambda v: loss(v, 1 - v))
    beta = min(grid, key=lambda v: loss(alpha, v))
    return {"alpha": alpha, "beta": beta, "loss": loss(alpha, beta), "one_stage_loss": loss(alpha, 1 - alpha),
            "plain_loss": loss(0, 0), "scales": b64(np.float32(np.maximum(a**alpha / b**beta, 1e-5)))}


# --- clipping, HQQ ------------------------------------------------------------------------------------------------------------
def mse_shrink(w, scheme, norm, weights):
    out = []
    for row in w:
        for g in range(0, K, scheme.group):
            part, weight = row[g : g + scheme.group][None, :], weights[g : g + scheme.group]
            scale = scheme.fit(part)[0]
            errors = []
            for i in range(20):
                p = np.float32(1 - i / 100)
                if isinstance(scheme, Int4Group):
                    s = bf16(np.float32(p * np.abs(part).max()) / np.float32(7))
                    q = np.clip(np.rint(part / s), -7, 7) * s
                else:
                    s = np.float32(np.abs(part).max() * p) / np.float32(127)
                    q = np.clip(np.rint(part / s), -127, 127) * s
                errors.append((np.abs((part - np.float32(q)).astype(np.float64)) ** norm * weight).sum())
            assert scale > 0
            out.append(1 - int(np.argmin(errors)) / 100)
    return out


def hqq_zeros(w, group=64):
    from hqq.core.optimize import optimize_weights_proximal_legacy

    flat = torch.tensor(w).reshape(-1, group)
    low, high = flat.min(1, keepdim=True)[0], flat.max(1, keepdim=True)[0]
    step = torch.tensor(bf16(((high - low) / 15).numpy()))
    q, _, zero = optimize_weights_proximal_legacy(
        flat, (1 / step).clone(), (-low / step).clone(), min_max=[0, 15], axis=1, device="cpu",
        opt_params={"lp_norm": 0.7, "beta": 1e1, "kappa": 1.01, "iters": 20})
    return {"zeros": b64(np.float32(zero)), "codes": b64(np.uint8(q.round()))}


# --- activation ranges --------------------------------------------------------------------------------------------------------
def modelopt_functions():
    from scipy.stats import entropy

    found = next(pathlib.Path(p) / "modelopt/torch/quantization/calib/histogram.py" for p in sys.path
                 if (pathlib.Path(p) / "modelopt/torch/quantization/calib/histogram.py").exists())
    tree = ast.parse(found.read_text())
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("_compute_amax")]

    def fake_tensor_quant(x, amax, *args):
        scale = 127 / amax
        return torch.clamp(torch.round(x * scale), -127, 127) / scale

    space = {"np": np, "torch": torch, "Counter": Counter, "entropy": entropy, "fake_tensor_quant": fake_tensor_quant}
    exec(compile(tree, str(found), "exec"), space)
    return space


def activation_ranges():
    values = np.float32(RNG.standard_t(3, 20000))
    values = np.float32(np.rint(values * 64) / 64 + 0.25)
    observer = torch.ao.quantization.HistogramObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine)
    observer(torch.tensor(values))
    low, high = observer._non_linear_param_search()
    counts, edges = np.histogram(np.abs(values), bins=2048, range=(0, float(np.abs(values).max())))
    tool = modelopt_functions()
    as_float = counts.astype(np.float64)
    return {
        "values": b64(np.int16(np.rint((values - 0.25) * 64))),
        "signed": {"low": float(observer.min_val), "high": float(observer.max_val), "counts": observer.histogram.tolist()},
        "histogram": [float(low), float(high)],
        "absolute": {"high": float(edges[-1]), "counts": counts.tolist()},
        "entropy": float(tool["_compute_amax_entropy"](as_float.copy(), edges, 8, False)),
        "mse": float(tool["_compute_amax_mse"](as_float.copy(), edges, 8, False)),
        "percentile": float(tool["_compute_amax_percentile"](as_float.copy(), edges, 99.9)),
    }


def sensitivity(x):
    def shifted(batch):
        shift = batch.max(axis=0) + batch.min(axis=0)
        return (batch - shift).std(ddof=1)

    halves = [x[: T // 2], x[T // 2 :]]
    std = max(shifted(half) for half in halves)
    centred = x - x.mean()
    q1, q3 = np.percentile(x, [25, 75])
    return {"range_parm": np.abs(x).max() / std, "kurtosis": (centred**4).mean() / (centred**2).mean() ** 2 - 3,
            "quantile": 2 * np.abs(x).max() / 254 / (q3 - q1)}


def main():
    w, x, full = inputs()
    values = x.astype(np.float64) / 16
    w64 = w.astype(np.float64)
    out = {"n": N, "k": K, "tokens": T, "w": b64(w), "x": b64(x), "x_full": b64(full), "gptq": {}}
    for name, scheme, spelling in [("int8_channel", Int8Channel(), "gptq"), ("int4_group:g32", Int4Group(), "gptq")]:
        for options, arguments in {
            "": {}, ":act_order": {"actorder": True}, ":block=32": {"blocksize": 32},
            ":static_groups": {"static": True}, ":damp=0.1": {"percdamp": 0.1}, ":asym": {"x_full": full},
            ":act_order,asym": {"actorder": True, "x_full": full},
        }.items():
            out["gptq"][f"{name} {spelling}{options}"] = b64(gptq(w, x, scheme, **arguments))
    out["smoothquant"] = b64(np.float32(smoothquant(w64, values, 0.5)))
    out["iterative_smooth"] = b64(np.float32(smoothquant(w64, values, 0.9)))
    out["awq"] = {f"{name}{suffix}": awq(w, values, scheme, duo) for name, scheme in
                  [("int8_channel", Int8Channel()), ("int4_group:g32", Int4Group())] for suffix, duo in [("", False), (" duo", True)]}
    out["flex"] = flex_smooth(w64, values)
    ones, squares = np.ones(K), (values**2).sum(axis=0)
    out["mse"] = {"int8_channel": mse_shrink(w, Int8Channel(), 2.4, ones), "int4_group:g32": mse_shrink(w, Int4Group(), 2.4, ones)}
    out["imatrix"] = {"int8_channel": mse_shrink(w, Int8Channel(), 2, squares),
                      "int4_group:g32": mse_shrink(w, Int4Group(), 2, squares)}
    out["hqq"], out["hqq_large"] = hqq_zeros(w), hqq_zeros(w * 32)  # beta is an absolute size: the norm matters to the second
    out["ranges"] = activation_ranges()
    out["sensitivity"] = sensitivity(values)
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main()
