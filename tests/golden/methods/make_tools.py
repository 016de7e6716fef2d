"""Goldens of quant/methods and quant/activation from the reference tools themselves. Writes tools.json.xz beside itself.

  pip install torch==2.13.0 numpy scipy
  pip install --no-deps llmcompressor==0.10.0 compressed-tensors==0.14.0 transformers==4.57.6 autoawq==0.2.9 \\
      auto-gptq==0.7.1 msmodelslim==26.1.0 bitsandbytes==0.50.2 torchao==0.18.0, and what their imports ask for
  pip download --no-deps --no-binary :all: gptqmodel==7.7.0, and unpack it
  python3 make_tools.py FOLDER_OF_GPTQMODEL      numpy 2.4.6, seed 20261130, run on 30 November 2026 on a CPU without a GPU

The tools' own code finds every number; what is done around it to run it on a CPU is said where it is done. In short:
  llm-compressor  quantize_weight (GPTQ); the observer memoryless_mse; SmoothQuantModifier on a norm and two linears
  AutoGPTQ        GPTQ.fasterquant (the reference code of IST-DASLab, packaged): groups fitted when they are entered. Loaded
                  without its package's __init__, which wants peft and all models; torch.cuda.synchronize does nothing; the scales
                  that its quantizer finds are rounded to bf16, which is how we store them
  GPTQModel       GPTAQ's process_batch and quantize. Only quantization/gptaq.py is loaded, as its siblings import packages for logs
                  and devices; what it takes from its base class is the factor of the damped Hessian, here by the same three
                  calls, and the quantizer, here AutoGPTQ's, from which GPTQModel's descends
  AutoAWQ         AwqQuantizer's scale and clip searches, without its __init__, which downloads text. transformers dropped a
                  name that it imports (PytorchGELUTanh): given back. It restores weights from state_dict() moved to the CPU,
                  which on a CPU is the very tensor that it scales in place: our module's state_dict copies
  msModelSlim     flex_smooth_quant, iter_smooth and smooth_quant on a norm and two linears, the alpha-beta search, the scale of
                  value heads under grouped queries; LayerSelector and Calibrator.get_auto_disable_names; analyze's metrics
  torch.ao        quantize_dynamic on the engine qnnpack, which computes in 8 bits (fbgemm's activations have 7: reduce_range);
                  MinMax, MovingAverageMinMax and PerChannelMinMax observers
  torchao         its per-token, per-channel int8 linear, codes in [-127, 127]
  bitsandbytes    Linear8bitLt with threshold 6
The smoothquant package on PyPI (0.0.1.dev0) is an empty __init__.py.

Inputs x are those of methods.json.xz (int8 in sixteenths).
"""

import base64
import importlib
import json
import logging
import lzma
import os
import pathlib
import sys
import types
import warnings
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)
os.environ["TORCHDYNAMO_DISABLE"] = "1"
torch.set_num_threads(1)  # sums in one order
HERE = pathlib.Path(__file__).parent
RNG = np.random.default_rng(20261130)
N, K, GPTQ_N, GROUP = 64, 128, 16, 32


def b64(array):
    array = array.detach().numpy() if isinstance(array, torch.Tensor) else np.asarray(array)
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()


def golden_inputs(name="x"):
    stored = json.loads(lzma.decompress((HERE / "methods.json.xz").read_bytes()))
    x = np.frombuffer(base64.b64decode(stored[name]), np.int8).reshape(stored["tokens"], stored["k"])
    return torch.from_numpy(x.astype(np.float32) / 16)


def bf16(x):
    return x.to(torch.bfloat16).to(x.dtype)


def without_halves(values):
    """No element is half of its row's largest: 63.5 steps of absmax / 127, a tie that f32 breaks by how it computes them."""
    return torch.where(2 * values.abs() == values.abs().amax(1, keepdim=True), torch.zeros(()), values)


class Scaled(nn.Module):
    """Stands for a norm: what the tools fold scales into. Its output is its input at first."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(K))
        self.bias = None

    def forward(self, x):
        return x * self.weight


class TwoLinears(nn.Module):
    """Two linears behind one norm, the rows of w between them."""

    def __init__(self, w):
        super().__init__()
        self.norm = Scaled()
        self.first, self.second = nn.Linear(K, N // 4, bias=False), nn.Linear(K, N - N // 4, bias=False)
        self.first.weight.data, self.second.weight.data = w[: N // 4].clone(), w[N // 4 :].clone()

    def state_dict(self, *args, **kwargs):
        return {name: value.clone() for name, value in super().state_dict(*args, **kwargs).items()}

    def forward(self, x):
        x = self.norm(x)
        return torch.cat([self.first(x), self.second(x)], -1)


# --- GPTQ ---------------------------------------------------------------------------------------------------------------------
def gptq_weights():
    """Weights whose groups of 32 have scales that bf16 holds exactly, symmetric (absmax / 7.5) and asymmetric (range / 15): the
    tools keep scales in f32, we in bf16, and the codes of both can be compared."""
    scale = bf16(torch.from_numpy(np.exp(RNG.normal(-4, 0.4, (GPTQ_N, K // GROUP, 1))).astype(np.float32)))
    inner = np.rint(RNG.normal(0, 2.2, (GPTQ_N, K // GROUP, GROUP)) * 1024) / 1024
    ends = np.stack([RNG.permutation(GROUP)[:2] for _ in range(GPTQ_N * K // GROUP)]).reshape(GPTQ_N, K // GROUP, 2)
    symmetric, asymmetric = np.clip(inner, -7, 7), inner.copy()
    sign = RNG.choice([-7.5, 7.5], (GPTQ_N, K // GROUP, 1))
    np.put_along_axis(symmetric, ends[..., :1], sign, -1)
    below = RNG.integers(36, 84, (GPTQ_N, K // GROUP, 1)) / 8 + 1 / 16  # of 15 steps; never half way between two
    asymmetric = np.clip(asymmetric, -below, 15 - below)
    np.put_along_axis(asymmetric, ends, np.concatenate([-below, 15 - below], -1), -1)
    return [torch.from_numpy(u.astype(np.float32)) * scale for u in (symmetric, asymmetric)]


def codes_of(values, scale, zero):
    """u8 [n, k] in [0, 15] from grid values; the grid value is exact to rounding, so this is."""
    values, scale, zero = (t.double() for t in (values, scale, zero))
    codes = values.reshape(GPTQ_N, K // GROUP, GROUP) / scale[..., None] + zero[..., None]
    assert (codes - codes.round()).abs().max() < 1e-3
    return b64(codes.round().reshape(GPTQ_N, K).to(torch.uint8))


def llm_compressor_gptq(w, x, symmetric, actorder, damp):
    from compressed_tensors.quantization import QuantizationArgs
    gptq = importlib.import_module("llmcompressor.modifiers.quantization.gptq.gptq_quantize")
    args = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=GROUP, symmetric=symmetric, actorder=actorder)
    layer = nn.Linear(K, GPTQ_N, bias=False)
    layer.weight.data = w.reshape(GPTQ_N, K).clone()
    h = gptq.make_empty_hessian(layer)
    h, _ = gptq.accumulate_hessian(x, layer, h, torch.zeros(()))
    _, found = gptq.quantize_weight(layer, args, h, blocksize=128, percdamp=damp)
    scale, zero = found["weight_scale"], found["weight_zero_point"] + 8
    assert torch.equal(scale, bf16(scale))
    return codes_of(found["weight"], scale, zero)


def llm_compressor_mse(w):
    """The observer memoryless_mse with its defaults (norm 2.4, 100 steps, at most 0.2 off, 5 steps of patience): the part of each
    group's range that it keeps, on the grid of int4_group:g32,full."""
    from compressed_tensors.quantization import QuantizationArgs
    from llmcompressor.observers.base import Observer
    args = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=GROUP, symmetric=True)
    layer = nn.Linear(K, N, bias=False)
    layer.weight.data = w.clone()
    scale, _ = Observer.load_from_registry("memoryless_mse", base_name="weight", args=args, module=layer)(layer.weight.data)
    return b64((scale * 7.5 / w.reshape(N, -1, GROUP).abs().amax(-1)).clamp(max=1).float())


def auto_gptq():
    import transformers
    root = pathlib.Path(importlib.util.find_spec("auto_gptq").submodule_search_locations[0])
    for name in ("auto_gptq", "auto_gptq.quantization"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(root / name.replace("auto_gptq", "").strip("."))]
    transformers.pytorch_utils  # loaded lazily, and AutoGPTQ only names it
    torch.cuda.synchronize = lambda: None
    return importlib.import_module("auto_gptq.quantization.gptq")


def bf16_quantizer(tool):
    class Bf16Quantizer(tool.Quantizer):
        def find_params(self, x, weight=False):
            super().find_params(x, weight)
            self.scale = bf16(self.scale)

    quantizer = Bf16Quantizer()
    quantizer.configure(4, perchannel=True, sym=True)
    return quantizer


def auto_gptq_codes(tool, w, x, block, **options):
    layer = nn.Linear(K, GPTQ_N, bias=False)
    layer.weight.data = w.reshape(GPTQ_N, K).clone()
    run = tool.GPTQ(layer)
    run.quantizer = bf16_quantizer(tool)
    run.add_batch(x, None)
    scale, zero, _ = run.fasterquant(blocksize=block, percdamp=0.01, group_size=GROUP, **options)
    return {"codes": codes_of(layer.weight.data, scale, zero), "scales": b64(scale.float())}


def gptaq_module():
    """quantization/gptaq.py with a base class that holds what GPTAQ uses of GPTQ."""
    class Gptq:
        def __init__(self, module, qcfg, region_timer=None):
            self.module, self.qcfg, self.name, self.module_copy, self.nsamples = module, qcfg, "layer", None, 0
            self.columns = module.weight.shape[1]

        def clone_module(self, device):
            return self.module.weight.data.clone()

        def hessian_inverse(self, h):
            h.diagonal().add_(self.qcfg.damp_percent * h.diagonal().mean())
            return torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True), self.qcfg.damp_percent

        def _sanitize_scale_and_log(self, scale, zero):
            return scale, zero

    def no_dead_columns(h, w, cross):
        dead = h.diagonal() == 0
        h[dead, dead], w[:, dead], cross[:, dead] = 1, 0, 0

    contents = {"": {}, ".looper": {}, ".looper.named_module": {"NamedModule": object},
                ".looper.native_processor": {"NATIVE_INPUTS_STATE_KEY": "native"}, ".quantization": {"QuantizeConfig": object},
                ".utils": {}, ".utils.torch": {"torch_sync": lambda: None}, ".quantization.gptq": {"GPTQ": Gptq},
                ".quantization.quantizer": {"_neutralize_dead_columns": no_dead_columns}}
    for name, values in contents.items():
        module = sys.modules["gptqmodel" + name] = types.ModuleType("gptqmodel" + name)
        module.__path__ = [str(pathlib.Path(sys.argv[1], "gptqmodel", *name.split(".")))]
        vars(module).update(values)
    return importlib.import_module("gptqmodel.quantization.gptaq")


def gptaq_codes(tool, quantizer, w, x, x_full, act_order, block=128):
    layer = nn.Linear(K, GPTQ_N, bias=False)
    layer.weight.data = w.reshape(GPTQ_N, K).clone()
    layer.state = {"native": [x_full]}
    config = SimpleNamespace(static_groups=True, desc_act=act_order, group_size=GROUP, damp_percent=0.01,
                             gptaq=SimpleNamespace(alpha=0.25))
    run = tool.GPTAQ(layer, config)
    run.quantizer = quantizer
    run.process_batch(x)
    values, scale, zero = run.quantize(blocksize=block)[:3]
    return codes_of(values, scale, zero)


def gptq(x):
    symmetric, asymmetric = gptq_weights()
    out = {"n": GPTQ_N, "full": b64(symmetric.reshape(GPTQ_N, K)), "asym": b64(asymmetric.reshape(GPTQ_N, K)), "llmcompressor": {}}
    for grid, w in (("full", symmetric), ("asym", asymmetric)):
        for options, actorder, damp in (("static_groups", None, 0.01), ("act_order", "static", 0.01),
                                        ("act_order,damp=0.1", "static", 0.1)):
            codes = llm_compressor_gptq(w, x, grid == "full", actorder, damp)
            out["llmcompressor"][f"int4_group:g32,{grid} gptq:{options}"] = codes
    tool = auto_gptq()
    out["auto_gptq"] = {
        "gptq": auto_gptq_codes(tool, symmetric, x, 32),
        "gptq:static_groups": auto_gptq_codes(tool, symmetric, x, 128, static_groups=True),
        "gptq:act_order": auto_gptq_codes(tool, symmetric, x, 128, static_groups=True, actorder=True),
        "stale": auto_gptq_codes(tool, symmetric, x, 128)}  # groups fitted to weights that lack the block's updates
    gptaq, x_full = gptaq_module(), golden_inputs("x_full")
    for options, act_order, block in (("static_groups,asym", False, 128), ("act_order,asym", True, 128), ("blocks", False, 32)):
        out.setdefault("gptaq", {})[options] = gptaq_codes(gptaq, bf16_quantizer(tool), symmetric, x, x_full, act_order, block)
    return out


def with_outliers(w):
    """Column 17, whose input is always 0, has row i's largest weight times 1 + i / 64: what clipping is for, in 8 bits too."""
    out = w.clone()
    out[:, 17] = 0
    out[:, 17] = out.abs().amax(1) * (1 + torch.arange(N) / N)
    return out


# --- AWQ ----------------------------------------------------------------------------------------------------------------------
def awq(w, x):
    import transformers.activations as activations
    activations.PytorchGELUTanh = getattr(activations, "PytorchGELUTanh", activations.GELUTanh)
    from awq.quantize.quantizer import AwqQuantizer

    class Recorded(AwqQuantizer):
        def __init__(self, bits, group, zero_point, duo):
            self.w_bit, self.group_size, self.zero_point, self.duo_scaling = bits, group, zero_point, duo
            self.n_parallel_calib_samples, self.max_chunk_memory, self.losses = None, 1 << 30, []

        def _compute_loss(self, *args):
            self.losses.append(super()._compute_loss(*args))
            return self.losses[-1]

    out = {}
    for name, bits, group, zero_point in (("int8_channel", 8, K, False), ("int4_group:g32", 4, GROUP, False),
                                          ("int4_group:g32,asym", 4, GROUP, True)):
        entry = {}
        for kind, duo in (("plain", False), ("duo", True)):
            tool, model = Recorded(bits, group, zero_point, duo), TwoLinears(w)
            with torch.no_grad():
                _, _, scales = tool._search_best_scale(model, model.norm, [model.first, model.second], x, model)
            entry[kind] = {"scales": b64(scales.float()), "losses": tool.losses}
        tool = Recorded(bits, group, zero_point, True)
        for kind, clipped in (("clip", w), ("clip_outliers", with_outliers(w))):
            kept = tool._compute_best_clip(clipped.clone(), x).squeeze(-1)
            entry[kind] = b64((kept / clipped.reshape(N, -1, group).abs().amax(-1)).float())
        out[name] = entry
    return out


# --- smoothing ----------------------------------------------------------------------------------------------------------------
def llm_compressor_smoothquant(w, x, alpha):
    from llmcompressor.core import State
    from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
    model = TwoLinears(w)
    modifier = SmoothQuantModifier(smoothing_strength=alpha, mappings=[[["re:.*first", "re:.*second"], "re:.*norm"]])
    state = State(model=model)
    state.data.calib = [x]
    modifier.on_initialize(state)
    modifier.on_start(state, None)
    with torch.no_grad():
        for batch in x.split(160):
            model(batch)
    modifier._apply_smoothing(model)
    modifier.on_end(state, None)
    return b64(1 / model.norm.weight.data)


def model_slim_smoothing(w, x):
    import msmodelslim.processor.anti_outlier.common as common
    from msmodelslim.processor.anti_outlier.common.scale_computation import FlexSmoothScaleCalculator
    from msmodelslim.processor.anti_outlier.common.subgraph_type import NormLinearSubgraph
    from msmodelslim.processor.anti_outlier.flex_smooth.alpha_beta_search import FlexSmoothAlphaBetaSearcher
    from msmodelslim.processor.anti_outlier.flex_smooth.api import flex_smooth_quant
    from msmodelslim.processor.anti_outlier.iter_smooth.api import iter_smooth
    from msmodelslim.processor.anti_outlier.smooth_quant.api import smooth_quant
    absmax = x.abs().amax(0)

    def scales_of(run, config, context):
        model = TwoLinears(w)
        run(NormLinearSubgraph(norm=model.norm, linears=[model.first, model.second]), config, context)
        return b64(1 / model.norm.weight.data)

    out = {"smooth_quant": scales_of(smooth_quant, common.SmoothQuantConfig(alpha=0.5), common.SmoothQuantContext(1, absmax, None)),
           "iter_smooth": scales_of(iter_smooth, common.IterSmoothConfig(), common.IterSmoothContext(1, absmax, None)),
           "flex_smooth": scales_of(flex_smooth_quant, common.FlexSmoothQuantConfig(), common.FlexSmoothQuantContext(1, absmax, [x]))}
    for scope, symmetric in (("token", True), ("tensor", False)):
        searcher = FlexSmoothAlphaBetaSearcher(act_sym=symmetric)
        alpha, beta, error = searcher.search_alpha_beta(x, w)
        grid = [i / 20 for i in range(21)]
        out[scope] = {"alpha": float(alpha), "beta": float(beta), "error": error,
                      "first": [searcher.evaluate_alpha_beta(x, w, a, 1 - a) for a in grid],
                      "second": [searcher.evaluate_alpha_beta(x, w, float(alpha), b) for b in grid]}
    heads = FlexSmoothScaleCalculator(alpha=0.7, beta=1 - 0.7, group_method="max")
    of_output, _ = heads.compute_ov_scales(absmax, w.abs().amax(0), 8, 4)  # 8 query heads of 16 channels on 4 heads of values
    out["grouped_queries"] = b64(of_output)
    return out


# --- which layers to keep -----------------------------------------------------------------------------------------------------
SHARED = {"q": 0, "k": 0, "v": 0, "o": 1, "gate": 2, "up": 2, "down": 3, "head": 4}  # layer -> which input
FACTORS = (1.0, 2.0, 5.0, 8.0, 3.0)


class Stack(nn.Module):
    """Linears on five inputs; what they compute does not matter to the scores."""

    def __init__(self):
        super().__init__()
        for name in SHARED:
            setattr(self, name, nn.Linear(K, 2, bias=False))

    def forward(self, *inputs):
        return [getattr(self, name)(inputs[at]) for name, at in SHARED.items()]


def model_slim_layers(x):
    """Input i: rows 128 i ... of x, channel 5 times FACTORS[i], in four batches."""
    from msmodelslim.processor.analysis.unary_operator.metrics import factory as metrics
    from msmodelslim.pytorch.llm_ptq.llm_ptq_tools.layer_select import LayerSelector
    from msmodelslim.pytorch.llm_ptq.llm_ptq_tools.quant_tools import Calibrator
    inputs = [x[128 * i : 128 * (i + 1)].clone() for i in range(5)]
    for values, factor in zip(inputs, FACTORS):
        values[:, 5] *= factor
    batches = [[values[32 * b : 32 * (b + 1)] for values in inputs] for b in range(4)]
    model = Stack()
    selector = LayerSelector(model, range_method="std")
    selector.run(batches)
    scores = {layer["name"]: layer["score"] for layer in selector.layer_scores}
    calibrator = SimpleNamespace(rollback_names=["head"])
    named = {}
    for n in range(8):
        calibrator.disable_level = f"L{n}"
        named[calibrator.disable_level] = Calibrator.get_auto_disable_names(calibrator, {name: scores[name] for name in SHARED})
    out = {"scores": scores, "groups": [selector.select_layers_by_disable_level(n) for n in range(6)], "calibrator": named}
    for metric, tool in (("kurtosis", metrics.KurtosisAnalysisMethod(sample_step=1)),
                         ("quantile", metrics.QuantileAnalysisMethod(sample_step=1)), ("std", metrics.StdAnalysisMethod())):
        stats = {}
        for batch in batches:
            for at, values in enumerate(batch):
                tool.get_hook()(None, values, None, str(at), stats)
        out[f"analyze_{metric}"] = [tool.compute_score(stats[str(at)]) for at in range(5)]
    return out


# --- torch.ao -----------------------------------------------------------------------------------------------------------------
def torch_dynamic(w, x):
    """The same layer by quantize_dynamic, one row a call (its activations have a range per call). Weights: the observer that
    qnnpack's and XNNPACK's configurations use, codes in [-127, 127]."""
    from torch.ao.quantization import QConfig, default_dynamic_quant_observer, quantize_dynamic
    from torch.ao.quantization.observer import per_channel_weight_observer_range_neg_127_to_127 as observer
    torch.backends.quantized.engine = "qnnpack"
    model = nn.Sequential(nn.Linear(K, N, bias=False))
    model[0].weight.data = w.clone()
    config = QConfig(activation=default_dynamic_quant_observer, weight=observer)
    quantized = quantize_dynamic(model, {"0": config})
    weight = quantized[0].weight()
    # Rows that both activation grids hold exactly: even steps in [-42, 126] where column 0 (no weight there) has 127 and column 1
    # (none either) -43: ours is steps of 1 from absmax 127, theirs 2 / 3 from a range of 170.
    exact = RNG.integers(-21, 64, (8, K)) * 2.0
    exact[:, 0], exact[:, 1] = 127, -43
    exact = torch.from_numpy((exact / 64).astype(np.float32))
    masked = w.clone()
    masked[:, :2] = 0
    model[0].weight.data = masked
    same = quantize_dynamic(model, {"0": config})
    rows = x[:32]

    def run(module, values):
        with torch.no_grad():
            return torch.cat([module(row[None]) for row in values])

    return {"codes": b64(weight.int_repr()), "scales": b64(weight.q_per_channel_scales().float()), "y": b64(run(quantized, rows)),
            "exact_x": b64((exact * 64).to(torch.int8)), "exact_y": b64(run(same, exact))}


def torchao_dynamic(w, x):
    """The dynamic int8 linear with a symmetric scale per row of x. x: 32 rows, without elements half of their row's largest."""
    from torchao.quantization.utils import _quant_int8_dynamic_per_token_linear, dynamically_quantize_per_channel
    codes, scales, _ = dynamically_quantize_per_channel(w, -127, 127, torch.int8)
    y = _quant_int8_dynamic_per_token_linear(without_halves(x[:32]), codes.t(), scales, None, torch.float32)
    return {"codes": b64(codes), "y": b64(y)}


def torch_observers(x):
    from torch.ao.quantization.observer import MinMaxObserver, MovingAverageMinMaxObserver
    out = {}
    for name, observer in (("minmax", MinMaxObserver()), ("moving_average", MovingAverageMinMaxObserver(averaging_constant=0.01))):
        for b, batch in enumerate(x.split(64)):
            observer(batch * ((b + 1) / 8) + 1)
        scale, zero = observer.calculate_qparams()
        out[name] = {"min": float(observer.min_val), "max": float(observer.max_val), "scale": float(scale), "zero": int(zero)}
    return out


# --- bitsandbytes -------------------------------------------------------------------------------------------------------------
def llm_int8(w, x):
    """LLM.int8() of 48 rows, f16. `large`: in the outlier columns every element is at least 8, so that what bitsandbytes leaves of
    them in a row's range (elements below the threshold) is nothing. `raw`: x as it is."""
    import bitsandbytes as bnb
    layer = bnb.nn.Linear8bitLt(K, N, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.weight = bnb.nn.Int8Params(w.half(), requires_grad=False, has_fp16_weights=False)
    layer = layer.to("cpu").eval()
    rows = (x[:48] * 1.37).half().float()
    columns = (rows.abs() >= 6).any(0)
    rows = torch.where(columns, rows, without_halves(torch.where(columns, torch.zeros(()), rows)))
    large = torch.where(columns & (rows >= 0), rows + 8, torch.where(columns, rows - 8, rows))
    out = {"columns": torch.argwhere(columns).view(-1).tolist()}
    for name, values in (("large", large.half().float()), ("raw", rows)):
        with torch.no_grad():
            y = layer(values.half())
        _, row_stats, found = bnb.functional.int8_vectorwise_quant(values.half(), threshold=6.0)
        assert found.tolist() == out["columns"]
        out[name] = {"x": b64(values.half()), "y": b64(y.half()), "row_absmax": b64(row_stats.float())}
    out["codes"], out["absmax"] = b64(layer.state.CB.to(torch.int8)), b64(layer.state.SCB.float())
    return out


def main():
    x = golden_inputs()
    w = without_halves(torch.from_numpy(RNG.normal(0, 0.05, (N, K)).astype(np.float16).astype(np.float32)))
    alive = x.clone()
    alive[:, 17] = x[:, 18]  # a dead channel makes msModelSlim's own objective NaN
    golden = {
        "n": N, "k": K, "w": b64(w.half()), "gptq": gptq(x), "awq": awq(w, x), "mse": llm_compressor_mse(w),
        "llmcompressor_smoothquant": llm_compressor_smoothquant(w, torch.cat([alive, -alive]), 0.5),
        "llmcompressor_smoothquant_range": llm_compressor_smoothquant(w, alive, 0.5),
        "msmodelslim": model_slim_smoothing(w / (1 + torch.arange(K) % 5), alive), "layers": model_slim_layers(x),
        "torch_dynamic": torch_dynamic(w, x), "torchao_dynamic": torchao_dynamic(w, x),
        "torch_observers": torch_observers(x), "bitsandbytes": llm_int8(w, x)}
    path = HERE / "tools.json.xz"
    path.write_bytes(lzma.compress(json.dumps(golden).encode(), preset=9 | lzma.PRESET_EXTREME))
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
