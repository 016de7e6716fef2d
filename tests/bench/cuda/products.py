"""Roofs and products: G1 to G4, G11, G12 of the goals."""

import itertools
import math
from ctypes import byref

import kernels
import numpy
from harness import rotations
from kernels import Linear

# [n, k] of one layer of an 8B-shaped model: q|k|v, o, gate|up, down.
LAYER = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
HEAD = (128256, 4096)
TINY_LAYER = ((96, 64), (64, 64), (256, 64), (64, 128))
TINY_HEAD = (96, 64)


def layer_of(bench):
    return TINY_LAYER if bench.tiny else LAYER


def elements(shapes):
    return sum(n * k for n, k in shapes)


def roofs(bench):
    """What copies and the largest products of torch reach here, in bytes and operations per second."""
    torch = bench.torch
    if torch is None:
        bench.table.missing("roof", "copy, bf16 and FP8 product of 8192", "no torch here")
        return
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds, = bench.timer.measure([lambda _: target.copy_(source)])
    bench.table.roofs["bytes"] = 2 * source.numel() / seconds
    bench.table.add("roof", f"copy {2 * source.numel() / seconds / 1e9:.0f} GB/s", seconds)
    del source, target
    side = 8192
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    out = torch.empty_like(a)
    seconds, = bench.timer.measure([lambda _: torch.mm(a, b.t(), out=out)])
    bench.table.roofs["bf16"] = 2 * side**3 / seconds
    bench.table.add("roof", f"bf16 product {2 * side**3 / seconds / 1e12:.0f} TFLOP/s", seconds)
    try:
        x, w = (torch.randn(side, side, device="cuda").to(torch.float8_e4m3fn) for _ in range(2))
        one = torch.ones((), device="cuda")
        def scaled(_):
            torch._scaled_mm(x, w.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16)
        seconds, = bench.timer.measure([scaled])
        bench.table.roofs["fp8"] = 2 * side**3 / seconds
        bench.table.add("roof", f"FP8 product {2 * side**3 / seconds / 1e12:.0f} TFLOP/s", seconds)
    except RuntimeError as error:
        bench.table.missing("roof", "FP8 product", str(error).split("\n")[0])


class Layer:
    """The products of one layer in one scheme, over as many copies of the weights as outgrow the cache."""

    def __init__(self, bench, scheme, activation="a16"):
        self.bench, self.activation = bench, activation
        bits = 4 if scheme in ("int4_group", "nf4") else 8
        shapes = layer_of(bench)
        self.sets = [[self._linear(scheme, n, k) for n, k in shapes]
                     for _ in range(rotations(elements(shapes) * bits // 8, bench.l2_bytes))]
        self.bytes = sum(linear.bytes for linear in self.sets[0])

    def _linear(self, scheme, n, k):
        library, memory = self.bench.library, self.bench.memory
        if scheme != "nf4":
            return Linear.quantize(library, scheme, memory.normal((n, k), deviation=0.05), self.activation)
        random = numpy.random.default_rng(7)
        codes = random.integers(0, 256, n * k // 2, dtype=numpy.uint8)
        scales = random.random(n * (k // 64), numpy.float32) * 0.1 + 0.05
        return Linear.upload(library, scheme, (n, k), codes, scales)

    def calls(self, rows):
        """One call per set: all products of the layer."""
        memory, shapes, operands = self.bench.memory, layer_of(self.bench), []
        for (n, k), linear in zip(shapes, self.sets[0]):
            linear.prepare(rows)
            codes = linear.form(rows) != "bf16"
            x = memory.bytes_below((rows, k), 120) if codes else memory.normal((rows, k))
            scales = memory.of(numpy.full(rows, 0.01, numpy.float32), "f32") if codes else None
            operands.append((x, memory.empty((rows, n), "f32"), scales))
        def call(linears, stream):
            for linear, (x, y, scales) in zip(linears, operands):
                linear.run(x, y, stream, scales)
        return [lambda stream, linears=linears: call(linears, stream) for linears in self.sets]


def torch_layer(bench, rows):
    """The same in bf16 by torch.mm."""
    torch, shapes = bench.torch, layer_of(bench)
    if not hasattr(bench, "torch_weights"):
        bench.torch_weights = [torch.randn(n, k, dtype=torch.bfloat16, device="cuda") for n, k in shapes]
    operands = [(torch.randn(rows, k, dtype=torch.bfloat16, device="cuda"),
                 torch.empty(rows, n, dtype=torch.bfloat16, device="cuda")) for n, k in shapes]
    def call(_):
        for weight, (x, y) in zip(bench.torch_weights, operands):
            torch.mm(x, weight.t(), out=y)
    return [call]


def torch_int4(bench, rows):
    """The same by _weight_int4pack_mm, groups of 128."""
    torch, shapes = bench.torch, layer_of(bench)
    if not hasattr(bench, "int4_weights"):
        bench.int4_weights = []
        for n, k in shapes * 2:  # more than the cache holds
            codes = torch.randint(0, 256, (n, k // 2), dtype=torch.uint8, device="cuda")
            scales = torch.randn(k // 128, n, 2, dtype=torch.bfloat16, device="cuda")
            bench.int4_weights.append((torch._convert_weight_to_int4pack(codes, 8), scales))
    inputs = {k: torch.randn(rows, k, dtype=torch.bfloat16, device="cuda") for _, k in shapes}
    def call(weights):
        for (_, k), (packed, scales) in zip(shapes, weights):
            torch._weight_int4pack_mm(inputs[k], packed, 128, scales)
    halves = (bench.int4_weights[:len(shapes)], bench.int4_weights[len(shapes):])
    return [lambda _, weights=weights: call(weights) for weights in halves]


def torch_fp8(bench, rows):
    """The same by _scaled_mm with scales per row, the quantization of x included."""
    torch, shapes = bench.torch, layer_of(bench)
    if not hasattr(bench, "fp8_weights"):
        bench.fp8_weights = [(torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn), torch.rand(1, n, device="cuda"))
                             for n, k in shapes]
    inputs = {k: torch.randn(rows, k, dtype=torch.bfloat16, device="cuda") for _, k in shapes}
    def call(_):
        for (_, k), (weight, scales) in zip(shapes, bench.fp8_weights):
            x = inputs[k]
            row_scales = x.abs().amax(1, keepdim=True).float() / 448
            codes = (x / row_scales).to(torch.float8_e4m3fn)
            torch._scaled_mm(codes, weight.t(), scale_a=row_scales, scale_b=scales, out_dtype=torch.bfloat16)
    return [call]


def few_rows(bench):
    """G1, G1b, G2, G3b, G11: one layer's products by skinny kernels."""
    goals = {("int4_group", 1): "3.2x", ("int4_group", 16): "3.0x", ("int4_group", 64): "2.0x", ("int4_group", 128): "1.1x"}
    times = {}
    for scheme in ("int4_group", "fp8_e4m3", "int8_channel", "nf4"):
        layer = Layer(bench, scheme)
        for rows in (1, 16, 64, 128) if scheme == "int4_group" else (1, 4, 16):
            id = {"int4_group": "G1" if rows == 1 else "G1b", "nf4": "G11"}.get(scheme, "G1c")
            bench.compare(id, f"layer {scheme} M={rows}", layer.calls(rows), "torch bf16 mm",
                          lambda rows=rows: torch_layer(bench, rows), goals.get((scheme, rows), ""),
                          roof=("bytes", layer.bytes))
            times[scheme, rows] = bench.table.rows[-1]["seconds"]
            if scheme == "int4_group" and rows <= 64:
                bench.compare("G2", f"layer {scheme} M={rows}", layer.calls(rows), "_weight_int4pack_mm",
                              lambda rows=rows: torch_int4(bench, rows), {1: "1.3x", 16: "2.5x", 64: "7x"}[rows])
            if scheme == "fp8_e4m3":
                bench.compare("G3b", f"layer {scheme} a16 M={rows}", layer.calls(rows), "_scaled_mm with quantization of x",
                              lambda rows=rows: torch_fp8(bench, rows), "1.3x")
            if scheme == "nf4" and times.get(("int4_group", rows)) and times[scheme, rows]:
                bench.table.add("G11", f"layer nf4 M={rows} beside our int4", times[scheme, rows], "our int4_group",
                                times["int4_group", rows], goal="0.9x")


def many_rows(bench):
    """Products of prompts: int8 exact, FP8 by rows, INT4 in FP8 by blocks, and what is expanded to 16 bit."""
    peer = "torch bf16 mm"
    for scheme, activation in (("int8_channel", "a8_token"), ("fp8_e4m3", "fp8_token"), ("int4_group", "fp8_block"),
                               ("int4_group", "a16")):
        layer = Layer(bench, scheme, activation)
        for rows in (8, 70) if bench.tiny else (512, 2048):
            bench.compare("Gx", f"layer {scheme} {activation} M={rows}", layer.calls(rows)[:1], peer,
                          lambda rows=rows: torch_layer(bench, rows), roof=("bf16", 2 * rows * elements(layer_of(bench))))


class Fp8Product:
    """x [m, k] w [n, k]^T in FP8 with scales per row, by the fastest of cuBLASLt's algorithms."""

    def __init__(self, bench, m, n, k):
        self.bench, memory = bench, bench.memory
        self.handle = bench.library.fp8_create(m, n, k)
        self.x, self.w = memory.bytes_below((m, k), 120), memory.bytes_below((n, k), 120)
        self.x_scales, self.w_scales = (memory.of(numpy.full(count, 0.01, numpy.float32), "f32") for count in (m, n))
        self.y = memory.empty((m, n), "bf16")
        algorithms = range(min(4, bench.library.fp8_algorithms(self.handle)))
        times = bench.timer.measure(*([self.call(algorithm)] for algorithm in algorithms))
        self.best = int(numpy.argmin(times))

    def call(self, algorithm):
        args = kernels.Fp8(self.x.pointer, self.w.pointer, self.x_scales.pointer, self.w_scales.pointer, self.y.pointer,
                           algorithm)
        return lambda stream: self.bench.library.fp8_run(self.handle, byref(args), stream)

    def peer(self, fast=False):
        torch = self.bench.torch
        x, w = self.x.tensor.view(torch.float8_e4m3fn), self.w.tensor.view(torch.float8_e4m3fn)
        scale_a, scale_b = self.x_scales.tensor[:, None], self.w_scales.tensor[None, :]
        def call(_):
            torch._scaled_mm(x, w.t(), scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=fast)
        return [call]

    def close(self):
        self.bench.library.fp8_destroy(self.handle)


def fp8(bench):
    """G3, G4: W8A8 by cuBLASLt."""
    ratios = []
    for m, (n, k) in itertools.product((32,) if bench.tiny else (1024, 4096, 8192), layer_of(bench)[::3]):
        try:
            product = Fp8Product(bench, m, n, k)
        except kernels.KernelError as error:
            bench.table.missing("G3", "FP8 W8A8", str(error))
            return
        bench.compare("G3", f"FP8 {m}x{n}x{k}", [product.call(product.best)], "_scaled_mm rowwise", product.peer, "1.0x",
                      roof=("fp8", 2 * m * n * k))
        ratios.append(bench.table.rows[-1]["value"])
        product.close()
    if all(ratios):
        mean = math.exp(sum(math.log(ratio) for ratio in ratios) / len(ratios))
        bench.table.add("G3", "geometric mean of these", peer="_scaled_mm rowwise", value=mean, goal="1.00x")
    side = 64 if bench.tiny else 8192
    product = Fp8Product(bench, side, side, side)
    def torch_bf16():
        torch = bench.torch
        a, b = (torch.randn(side, side, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        return [lambda _: torch.mm(a, b.t())]
    bench.compare("G4", f"FP8 {side}^3", [product.call(product.best)], "torch bf16 mm", torch_bf16, "1.65x",
                  roof=("fp8", 2 * side**3))
    product.close()


def admission(bench):
    """G12: an 8B model, bf16 on the device, to codes and scales."""
    shapes, layers, head = layer_of(bench), 2 if bench.tiny else 32, TINY_HEAD if bench.tiny else HEAD
    library, memory = bench.library, bench.memory
    source = memory.normal((max(n * k for n, k in (*shapes, head)),), deviation=0.05)
    codes, scales = memory.empty(source.shape, "u8"), memory.empty((source.shape[0] // 64,), "f32")
    for scheme in ("fp8_e4m3", "int8_channel", "int4_group"):
        def call(n, k, stream):
            if scheme == "int4_group":
                library.quantize_int4(byref(kernels.QuantizeInt4(source.pointer, codes.pointer, scales.pointer, n, k, 128)), stream)
            else:
                args = kernels.Quantize(source.pointer, codes.pointer, scales.pointer, n, k, kernels.ROW_CODES[scheme])
                library.quantize_rows(byref(args), stream)
        def one_layer(stream):
            for n, k in shapes:
                call(n, k, stream)
        of_layer, = bench.timer.measure([one_layer])
        of_head, = bench.timer.measure([lambda stream: call(*head, stream)])
        seconds, count = layers * of_layer + of_head, layers * elements(shapes) + elements([head])
        moved = count * (2 + (0.5 if scheme == "int4_group" else 1))
        share = bench.table.share("bytes", moved, seconds)
        bench.table.add("G12", f"quantize {count / 1e9:.1f}e9 weights to {scheme}", seconds if bench.timer.exact else None,
                        value=share, share=share, goal="60% of copy")
