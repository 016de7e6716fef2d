"""Rows and attention: G5 to G7 of the goals."""

import math
from ctypes import byref

import kernels
import numpy
from harness import rotations


def rows_of_forms(bench):
    """G5: what stands between products, as a share of a copy's speed."""
    library, memory = bench.library, bench.memory
    for rows, width, ffn in ((3, 64, 128),) if bench.tiny else ((2048, 4096, 14336), (8192, 4096, 14336)):
        for form, code_bytes in (("bf16", 2), ("s8", 1), ("e4m3", 1)):
            kind, scales = "bf16" if form == "bf16" else "u8", memory.zeros((rows,), "f32")
            sets = rotations(rows * width * (4 + code_bytes), bench.l2_bytes)
            gain = memory.normal((width,), "f32")
            norms = [(memory.normal((rows, width), "f32"), memory.empty((rows, width), kind)) for _ in range(sets)]
            calls = [kernels.Norm(x.pointer, gain.pointer, out.pointer, scales.pointer, rows, width, kernels.FORMS[form], 1e-5)
                     for x, out in norms]
            bench.compare("G5", f"norm to {form} [{rows}, {width}]",
                          [lambda stream, args=args: library.norm(byref(args), stream) for args in calls],
                          goal="85% roof", roof=("bytes", rows * width * (4 + code_bytes)))
            del norms
            wide, out = memory.normal((rows, 2 * ffn), "f32"), memory.empty((rows, ffn), kind)
            args = kernels.Activate(wide.pointer, out.pointer, scales.pointer, rows, ffn, kernels.FORMS[form])
            bench.compare("G5", f"silu to {form} [{rows}, {ffn}]", [lambda stream: library.activate(byref(args), stream)],
                          goal="85% roof", roof=("bytes", rows * ffn * (8 + code_bytes)))


def best_sdpa(bench, q, k, v, backends, **options):
    """The name and a call of the fastest of torch's backends that takes this; SystemError when none does."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    torch, found = bench.torch, []
    for name in backends:
        backend = getattr(SDPBackend, name)
        def call(_, backend=backend):
            with sdpa_kernel(backend):
                torch.nn.functional.scaled_dot_product_attention(q, k, v, **options)
        try:
            call(None)
            torch.cuda.synchronize()
            seconds, = bench.timer.measure([call])
            found.append((seconds, name, call))
        except RuntimeError:
            continue
    if not found:
        raise SystemError(f"no backend of {', '.join(backends)} takes this")
    return min(found)[1:]


def decode(bench):
    """G6, G6b: one row per sequence over a paged cache."""
    rows, context, heads, kv_heads, d = (2, 40, 4, 2, 32) if bench.tiny else (64, 4096, 32, 8, 128)
    library, memory, pages = bench.library, bench.memory, (context + 15) // 16
    tables = memory.of(numpy.random.default_rng(2).permutation(rows * pages).reshape(rows, pages), "i32")
    positions = memory.of(numpy.full(rows, context - 1), "i32")
    sequences = memory.of(numpy.arange(rows), "i32")
    q, y = memory.normal((rows, heads, d)), memory.empty((rows, heads, d), "bf16")
    arrived, best = memory.zeros((rows, kv_heads), "i32"), {}
    for format in ("bf16", "s8", "e4m3"):
        kv, kept = kernels.pool(memory, format, rows * pages, kv_heads, d)
        moved = 2 * rows * context * kv_heads * (d * (2 if format == "bf16" else 1) + (0 if format == "bf16" else 4))
        for splits in (1, 4, 8):
            workspace = memory.zeros((max(1, library.decode_workspace_bytes(rows, heads, d, splits) // 4),), "f32")
            args = kernels.Decode(q.pointer, positions.pointer, sequences.pointer, tables.pointer, workspace.pointer,
                                  arrived.pointer, y.pointer, rows, pages, heads, splits, 1 / math.sqrt(d), kv)
            seconds, = bench.timer.measure([lambda stream: library.decode_attention(byref(args), stream)])
            best[format] = min(best.get(format, (math.inf, 0)), (seconds, splits))
        seconds, splits = best[format]
        share = bench.table.share("bytes", moved, seconds)
        bench.table.add("G6", f"decode attention {format} B={rows} context {context}", seconds if bench.timer.exact else None,
                        value=share, share=share, goal="85% roof" if format == "bf16" else "", note=f"splits={splits}")
        del kept
    if not bench.timer.exact:
        return
    for format in ("s8", "e4m3"):
        bench.table.add("G6b", f"KV in {format} beside ours in bf16", best[format][0], "our bf16 KV", best["bf16"][0], goal="1.75x")
    torch = bench.torch
    query = torch.randn(rows, heads, 1, d, dtype=torch.bfloat16, device="cuda")
    keys, values = (torch.randn(rows, kv_heads, context, d, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    bench.against_torch("G6", "decode attention bf16", best["bf16"][0], "1.2x",
                        lambda: best_sdpa(bench, query, keys, values, ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION"),
                                          enable_gqa=True))


def prefill(bench):
    """G7: a prompt's rows over a paged cache, causal."""
    heads, kv_heads, d = (4, 2, 32) if bench.tiny else (32, 8, 128)
    library, memory = bench.library, bench.memory
    for rows in (70,) if bench.tiny else (4096, 8192, 16384):
        pages = (rows + 15) // 16
        table = memory.of(numpy.random.default_rng(3).permutation(pages)[None, :], "i32")
        q, y = memory.normal((rows, heads, d)), memory.empty((rows, heads, d), "bf16")
        tiles = [(first, min(64, rows - first), 0, first) for first in range(0, rows, 64)][::-1]
        on_device = memory.of(numpy.array(tiles), "i32")
        kv, kept = kernels.pool(memory, "bf16", pages, kv_heads, d)
        args = kernels.Prefill(q.pointer, on_device.pointer, table.pointer, y.pointer, len(tiles), pages, heads,
                               1 / math.sqrt(d), kv)
        seconds, = bench.timer.measure([lambda stream: library.prefill_attention(byref(args), stream)])
        operations = 2 * rows * rows * heads * d
        bench.table.add("G7", f"prefill attention bf16 T={rows}", seconds if bench.timer.exact else None,
                        share=bench.table.share("bf16", operations, seconds))
        if bench.timer.exact:
            torch = bench.torch
            query = torch.randn(1, heads, rows, d, dtype=torch.bfloat16, device="cuda")
            keys, values = (torch.randn(1, kv_heads, rows, d, dtype=torch.bfloat16, device="cuda") for _ in range(2))
            for id, backend, goal in (("G7", "FLASH_ATTENTION", "1.0x"), ("G7b", "CUDNN_ATTENTION", "0.5x")):
                bench.against_torch(id, f"prefill attention bf16 T={rows}", seconds, goal,
                                    lambda backend=backend: best_sdpa(bench, query, keys, values, (backend,), is_causal=True, enable_gqa=True))
        del kept
