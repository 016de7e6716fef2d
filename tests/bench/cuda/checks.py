"""That every function of the C interface does what the bench takes it for: small operands, numpy beside it.

The kernels' own tests are in C++; these find a wrong argument, order or layout on this side. Tolerances: outputs of bf16 are off
by 2^-9 of the number, sums of products of bf16 in f32 by far less; codes by the scheme's step.
"""

import math
from ctypes import byref

import kernels
import numpy
from kernels import Linear, Llama, bf16_bits, from_bf16

TINY_LLAMA = dict(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=128, vocab=96, max_context=64,
                  rope_theta=10000.0, norm_eps=1e-5)
NF4 = numpy.array([-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0, 0.07958030,
                   0.16093020, 0.24611230, 0.33791524, 0.44070983, 0.56261700, 0.72295684, 1.0], numpy.float32)


class CheckError(AssertionError):
    pass


def near(what, got, expected, tolerance):
    """Largest difference, in units of the expected rows' root mean square."""
    size = math.sqrt(float(numpy.mean(numpy.square(expected, dtype=numpy.float64)))) or 1.0
    worst = float(numpy.max(numpy.abs(numpy.asarray(got, numpy.float64) - expected))) / size
    if not worst <= tolerance:
        raise CheckError(f"{what}: off by {worst:.3g}, allowed {tolerance:.3g}")
    return worst


def e4m3(codes):
    """Numbers of FP8 codes (no NaN)."""
    codes = numpy.asarray(codes, numpy.int32)
    exponent, mantissa = codes >> 3 & 15, codes & 7
    size = numpy.where(exponent == 0, mantissa / 8 * 2.0**-6, (1 + mantissa / 8) * 2.0 ** (exponent - 7))
    return numpy.where(codes >> 7 == 1, -size, size).astype(numpy.float32)


def decoded_rows(codes, scales, form):
    values = codes.view(numpy.int8).astype(numpy.float32) if form == "s8" else e4m3(codes)
    return values * scales[:, None]


def as_stored(weight, scheme):
    """What the quantizers make of a weight [n, k], in f32."""
    if scheme == "int8_channel":
        scale = numpy.abs(weight).max(1, keepdims=True) / 127
        return numpy.round(weight / scale) * scale
    if scheme == "int4_group":
        groups = weight.reshape(weight.shape[0], -1, min(128, weight.shape[1]))
        scale = from_bf16(bf16_bits(numpy.abs(groups).max(2, keepdims=True) / 7))
        return (numpy.clip(numpy.round(groups / scale), -7, 7) * scale).reshape(weight.shape)
    raise ValueError(scheme)


def quantizers(library, memory):
    x = memory.normal((5, 256))
    for to, form, step in (("a8_token", "s8", 1 / 127), ("int8_channel", "s8", 1 / 127), ("fp8_token", "e4m3", 1 / 16),
                           ("fp8_e4m3", "e4m3", 1 / 16)):
        codes, scales = memory.zeros((5, 256), "u8"), memory.zeros((5,), "f32")
        args = kernels.Quantize(x.pointer, codes.pointer, scales.pointer, 5, 256, kernels.ROW_CODES[to])
        library.quantize_rows(byref(args), None)
        worst = numpy.abs(x.values()).max()
        near(to, decoded_rows(codes.raw(), scales.raw(), form), x.values(), step * worst * 1.01)
    codes, scales = memory.zeros((5, 128), "u8"), memory.zeros((5, 2), "bf16")
    library.quantize_int4(byref(kernels.QuantizeInt4(x.pointer, codes.pointer, scales.pointer, 5, 256, 128)), None)
    nibbles = numpy.stack([codes.raw() & 15, codes.raw() >> 4], 2).reshape(5, 2, 128).astype(numpy.float32) - 8
    near("int4_group", (nibbles * scales.values()[:, :, None]).reshape(5, 256), as_stored(x.values(), "int4_group"), 0.02)


def rows_of_forms(library, memory):
    x, gain = memory.normal((3, 128), "f32"), memory.normal((128,), "f32")
    exact = x.raw() / numpy.sqrt(numpy.mean(x.raw() ** 2, 1, keepdims=True) + 1e-5) * gain.raw()
    wide = memory.normal((3, 256), "f32")
    gate, up = wide.raw()[:, :128], wide.raw()[:, 128:]
    gated = gate / (1 + numpy.exp(-gate)) * up
    for form, tolerance in (("f32", 1e-4), ("bf16", 0.04), ("s8", 0.05), ("e4m3", 0.3)):
        scales = memory.zeros((3,), "f32")
        out = memory.zeros((3, 128), {"f32": "f32", "bf16": "bf16"}.get(form, "u8"))
        def values():
            return out.values() if form in ("f32", "bf16") else decoded_rows(out.raw(), scales.raw(), form)
        args = kernels.Norm(x.pointer, gain.pointer, out.pointer, scales.pointer, 3, 128, kernels.FORMS[form], 1e-5)
        library.norm(byref(args), None)
        near(f"norm {form}", values(), exact, tolerance)
        args = kernels.Activate(wide.pointer, out.pointer, scales.pointer, 3, 128, kernels.FORMS[form])
        library.activate(byref(args), None)
        near(f"activate {form}", values(), gated, tolerance)


def linears(library, memory):
    weight = memory.normal((96, 256), deviation=0.05)
    for rows in (3, 70):
        x, y = memory.normal((rows, 256)), memory.zeros((rows, 96), "f32")
        for scheme in ("int4_group", "int8_channel"):
            linear = Linear.quantize(library, scheme, weight)
            linear.prepare(rows)
            linear.run(x, y, None)
            near(f"{scheme} rows={rows}", y.raw(), x.values() @ as_stored(weight.values(), scheme).T, 0.02)
        linear = Linear.quantize(library, "fp8_e4m3", weight)
        linear.prepare(rows)
        linear.run(x, y, None)
        near(f"fp8_e4m3 rows={rows}", y.raw(), x.values() @ weight.values().T, 0.3)
        codes = numpy.random.default_rng(3).integers(0, 256, (96, 128)).astype(numpy.uint8)
        scales = numpy.full((96, 4), 0.5, numpy.float32) + numpy.arange(96, dtype=numpy.float32)[:, None]
        linear = Linear.upload(library, "nf4", (96, 256), codes, scales)
        linear.prepare(rows)
        linear.run(x, y, None)
        values = NF4[numpy.stack([codes & 15, codes >> 4], 2).reshape(96, 256)] * numpy.repeat(scales, 64, 1)
        near(f"nf4 rows={rows}", y.raw(), x.values() @ from_bf16(bf16_bits(values)).T, 0.05)
        for scheme, activation in (("int8_channel", "a8_token"), ("fp8_e4m3", "fp8_token"), ("int4_group", "fp8_block")):
            linear = Linear.quantize(library, scheme, weight, activation)
            linear.prepare(rows)
            form, seen, x_scales = linear.form(rows), x.values(), None
            operand = x
            if form != "bf16":
                operand, x_scales = memory.zeros((rows, 256), "u8"), memory.zeros((rows,), "f32")
                to = kernels.ROW_CODES["a8_token" if form == "s8" else "fp8_token"]
                args = kernels.Quantize(x.pointer, operand.pointer, x_scales.pointer, rows, 256, to)
                library.quantize_rows(byref(args), None)
                seen = decoded_rows(operand.raw(), x_scales.raw(), form)
            linear.run(operand, y, None, x_scales)
            stored = weight.values() if scheme == "fp8_e4m3" else as_stored(weight.values(), scheme)
            near(f"{scheme} {activation} rows={rows}", y.raw(), seen @ stored.T, 1e-3 if form == "s8" else 0.3)


def fp8_product(library, memory):
    m, n, k = 32, 48, 64
    try:
        handle = library.fp8_create(m, n, k)
    except kernels.KernelError as error:
        return f"no cuBLASLt FP8: {error}"
    x, w = memory.bytes_below((m, k), 120), memory.bytes_below((n, k), 120)
    x_scales = memory.of(numpy.arange(1, m + 1) / 100, "f32")
    w_scales = memory.of(numpy.arange(1, n + 1) / 100, "f32")
    expected = (e4m3(x.raw()) * x_scales.raw()[:, None]) @ (e4m3(w.raw()) * w_scales.raw()[:, None]).T
    for algorithm in range(library.fp8_algorithms(handle)):
        y = memory.zeros((m, n), "bf16")
        args = kernels.Fp8(x.pointer, w.pointer, x_scales.pointer, w_scales.pointer, y.pointer, algorithm)
        library.fp8_run(handle, byref(args), None)
        near("fp8 product", y.values(), expected, 0.05)
    library.fp8_destroy(handle)
    return ""


def attend(q, keys, values, first_position):
    """q [rows, heads, d], keys and values [positions, kv_heads, d]; row r sees positions up to first_position + r."""
    group = q.shape[1] // keys.shape[1]
    keys, values = numpy.repeat(keys, group, 1), numpy.repeat(values, group, 1)
    scores = numpy.einsum("rhd,phd->rhp", q, keys) / math.sqrt(q.shape[2])
    late = numpy.arange(keys.shape[0])[None, :] > first_position + numpy.arange(q.shape[0])[:, None]
    scores[numpy.broadcast_to(late[:, None, :], scores.shape)] = -numpy.inf
    weights = numpy.exp(scores - scores.max(2, keepdims=True))
    return numpy.einsum("rhp,phd->rhd", weights / weights.sum(2, keepdims=True), values)


def stored_kv(kv_arrays, format, blocks):
    """[2][positions, kv_heads, d] of a sequence with these pages, in order."""
    codes, scales = kv_arrays
    if format == "bf16":
        all_pages = codes.values()
    else:
        signed = codes.raw().view(numpy.int8).astype(numpy.float32)
        all_pages = (signed if format == "s8" else e4m3(codes.raw())) * scales.raw()[..., None]
    pages = all_pages[blocks]  # [blocks, kv_heads, 2, 16, d]
    return [pages[:, :, which].transpose(0, 2, 1, 3).reshape(-1, pages.shape[1], pages.shape[4]) for which in (0, 1)]


def rotated(x, positions, theta):
    """x [rows, heads, d] by rotate_half."""
    half = x.shape[2] // 2
    angle = positions[:, None] * theta ** (-numpy.arange(half) / half)
    cosine, sine = numpy.cos(angle)[:, None], numpy.sin(angle)[:, None]
    low, high = x[..., :half], x[..., half:]
    return numpy.concatenate([low * cosine - high * sine, high * cosine + low * sine], 2)


def rotation(library, memory):
    heads, kv_heads, d = 4, 2, 16
    kv, arrays = kernels.pool(memory, "bf16", 4, kv_heads, d, fill=False)
    qkv = memory.normal((2, heads + 2 * kv_heads, d), "f32")
    positions = numpy.array([17, 3], numpy.int32)
    tables = memory.of(numpy.array([[2, 1], [3, 0]]), "i32")
    on_device = [memory.of(v, kind) for v, kind in ((10000.0 ** (-numpy.arange(8) / 8), "f32"), (positions, "i32"),
                                                    (numpy.array([0, 1]), "i32"))]
    q = memory.zeros((2, heads, d), "bf16")
    args = kernels.Rope(qkv.pointer, *(array.pointer for array in on_device), tables.pointer, q.pointer, 2, 2, heads, kv)
    library.rope_append(byref(args), None)
    near("rotated queries", q.values(), rotated(qkv.raw()[:, :heads], positions, 10000.0), 0.02)
    keys = rotated(qkv.raw()[:, heads:heads + kv_heads], positions, 10000.0)
    for row, blocks in enumerate(([2, 1], [3, 0])):
        stored = stored_kv(arrays, "bf16", blocks)
        near("appended keys", stored[0][positions[row]], keys[row], 0.02)
        near("appended values", stored[1][positions[row]], qkv.raw()[row, heads + kv_heads:], 0.02)


def attention(library, memory):
    heads, kv_heads, d, scale = 4, 2, 32, 1 / math.sqrt(32)
    tables = numpy.array([[4, 2, 0], [1, 5, 3]], numpy.int32)
    table = memory.of(tables, "i32")
    for format in ("bf16", "s8", "e4m3"):
        kv, arrays = kernels.pool(memory, format, 6, kv_heads, d)
        stored = [stored_kv(arrays, format, blocks) for blocks in tables]
        q, y = memory.normal((2, heads, d)), memory.zeros((2, heads, d), "bf16")
        positions, sequences = memory.of(numpy.array([40, 20]), "i32"), memory.of(numpy.array([0, 1]), "i32")
        for splits in (1, 2):
            workspace = memory.zeros((max(4, library.decode_workspace_bytes(2, heads, d, splits)) // 4,), "f32")
            arrived = memory.zeros((2, kv_heads), "i32")
            args = kernels.Decode(q.pointer, positions.pointer, sequences.pointer, table.pointer, workspace.pointer,
                                  arrived.pointer, y.pointer, 2, 3, heads, splits, scale, kv)
            library.decode_attention(byref(args), None)
            for row, last in enumerate((40, 20)):
                keys, values = (v[:last + 1] for v in stored[row])
                near(f"decode {format}", y.values()[row:row + 1], attend(q.values()[row:row + 1], keys, values, last), 0.1)
        q, y = memory.normal((20, heads, d)), memory.zeros((20, heads, d), "bf16")
        tiles = memory.of(numpy.array([[0, 20, 1, 7]]), "i32")
        args = kernels.Prefill(q.pointer, tiles.pointer, table.pointer, y.pointer, 1, 3, heads, scale, kv)
        library.prefill_attention(byref(args), None)
        near(f"prefill {format}", y.values(), attend(q.values(), *(v[:27] for v in stored[1]), 7), 0.1)


def reference_logits(shape, weights, tokens):
    """A llama of TINY_LLAMA's kind, int8_channel throughout, whose layers are slices of one array."""
    def layer(n, k):
        return as_stored(weights[:n * k].reshape(n, k), "int8_channel")
    def norm(x):
        return x / numpy.sqrt(numpy.mean(x * x, 1, keepdims=True) + shape["norm_eps"])
    hidden, heads, kv_heads, d, ffn = (shape[key] for key in ("hidden", "heads", "kv_heads", "head_dim", "ffn"))
    stream, positions = layer(shape["vocab"], hidden)[tokens], numpy.arange(len(tokens))
    for _ in range(shape["layers"]):
        qkv = (norm(stream) @ layer((heads + 2 * kv_heads) * d, hidden).T).reshape(len(tokens), -1, d)
        q, k = (rotated(part, positions, shape["rope_theta"]) for part in (qkv[:, :heads], qkv[:, heads:heads + kv_heads]))
        attended = attend(q, k, qkv[:, heads + kv_heads:], 0).reshape(len(tokens), heads * d)
        stream = stream + attended @ layer(hidden, heads * d).T
        wide = norm(stream) @ layer(2 * ffn, hidden).T
        gate = wide[:, :ffn]
        stream = stream + (gate / (1 + numpy.exp(-gate)) * wide[:, ffn:]) @ layer(hidden, ffn).T
    return norm(stream) @ layer(shape["vocab"], hidden).T


def model(library, memory):
    shape = TINY_LLAMA
    weights = memory.normal((2 * shape["ffn"] * shape["hidden"],), deviation=0.1)
    tokens = numpy.random.default_rng(5).integers(0, shape["vocab"], 24)
    expected = reference_logits(shape, weights.values(), tokens)
    for kv, pdl, tolerance in (("bf16", 0, 0.1), ("bf16", 1, 0.1), ("s8", 0, 0.2)):
        llama = Llama(library, shape, "int8_channel", weights, splits=2, pdl=pdl)
        llama.begin(2, 64, 64, kv)
        logits = llama.step(numpy.tile(tokens[:20], 2), [0, 0], [20, 20], False)
        near("prefill of a model", logits[1], expected[19], tolerance)
        for position in range(20, 24):  # eager, captured, launched
            logits = llama.step([tokens[position]] * 2, [position] * 2, [1, 1], True)
            near("decode step of a model", logits[0], expected[position], tolerance)
        llama.close()


ALL = (quantizers, rows_of_forms, linears, fp8_product, rotation, attention, model)


def run(library, memory):
    """Notes of what could not be checked; raises CheckError."""
    return [note for check in ALL if (note := check(library, memory))]
