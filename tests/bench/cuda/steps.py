"""Whole steps of an 8B-shaped llama with random weights: G8 to G10 of the goals.

Ours is the step as the engine runs it: the batch is uploaded, a CUDA graph is launched, logits in f32 come back to pinned memory,
the host waits. The peer is plain torch in bf16: one fused step over a static cache, a CUDA graph, the token comes back.
"""

import numpy
from kernels import Llama

LLAMA_8B = dict(layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128256, max_context=8192,
                rope_theta=500000.0, norm_eps=1e-5)
TINY = dict(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=128, vocab=96, max_context=256, rope_theta=10000.0,
            norm_eps=1e-5)


class TorchLlama:
    """One decode step in bf16, all sequences at the same position; `step` may be compiled and captured."""

    def __init__(self, torch, shape, batch, context):
        self.torch, self.shape, self.batch = torch, shape, batch
        h, heads, kv, d, ffn = (shape[key] for key in ("hidden", "heads", "kv_heads", "head_dim", "ffn"))
        def weight(n, k):
            return torch.randn(n, k, dtype=torch.bfloat16, device="cuda") * 0.02
        self.layers = [(weight((heads + 2 * kv) * d, h), weight(h, heads * d), weight(2 * ffn, h), weight(h, ffn))
                       for _ in range(shape["layers"])]
        self.caches = [torch.randn(2, batch, kv, context, d, dtype=torch.bfloat16, device="cuda")
                       for _ in range(shape["layers"])]
        self.table, self.head = weight(shape["vocab"], h), weight(shape["vocab"], h)
        self.norm = torch.ones(h, dtype=torch.bfloat16, device="cuda")
        self.tokens = torch.zeros(batch, dtype=torch.int64, device="cuda")
        self.position = torch.full((1,), context - 1, dtype=torch.int64, device="cuda")
        angle = (context - 1) * shape["rope_theta"] ** (-torch.arange(d // 2, device="cuda") / (d // 2))
        self.cosine, self.sine = angle.cos().bfloat16(), angle.sin().bfloat16()
        self.layer = self._layer

    def _rotate(self, x):
        low, high = x.chunk(2, -1)
        return self.torch.cat([low * self.cosine - high * self.sine, high * self.cosine + low * self.sine], -1)

    def _layer(self, x, qkv_weight, o_weight, gate_up, down, cache):
        functional, s = self.torch.nn.functional, self.shape
        heads, kv, d = s["heads"], s["kv_heads"], s["head_dim"]
        normed = functional.rms_norm(x, (s["hidden"],), self.norm, s["norm_eps"])
        qkv = functional.linear(normed, qkv_weight).view(self.batch, -1, d)
        q, k, v = self._rotate(qkv[:, :heads]), self._rotate(qkv[:, heads:heads + kv]), qkv[:, heads + kv:]
        cache[0].index_copy_(2, self.position, k[:, :, None])
        cache[1].index_copy_(2, self.position, v[:, :, None])
        attended = functional.scaled_dot_product_attention(q[:, :, None], cache[0], cache[1], enable_gqa=True)
        x = x + functional.linear(attended.reshape(self.batch, heads * d), o_weight)
        wide = functional.linear(functional.rms_norm(x, (s["hidden"],), self.norm, s["norm_eps"]), gate_up)
        gate, up = wide.chunk(2, -1)
        return x + functional.linear(functional.silu(gate) * up, down)

    def step(self):
        x = self.table[self.tokens]
        for weights, cache in zip(self.layers, self.caches):
            x = self.layer(x, *weights, cache)
        x = self.torch.nn.functional.rms_norm(x, (self.shape["hidden"],), self.norm, self.shape["norm_eps"])
        self.tokens.copy_(self.torch.nn.functional.linear(x, self.head).argmax(-1))

    def captured(self, compiled):
        """A call that runs a step and waits for its tokens."""
        torch = self.torch
        self.layer = torch.compile(self._layer, dynamic=False, mode="max-autotune-no-cudagraphs") if compiled else self._layer
        with torch.no_grad():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.step()
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.step()
        def call(_):
            graph.replay()
            self.tokens.cpu()
        return call


def source_of(bench, shape):
    largest = max(2 * shape["ffn"], shape["vocab"]) * shape["hidden"]
    return bench.memory.normal((largest,), deviation=0.02)


def filled(bench, model, shape, batch, context, kv):
    """A pass whose cache holds random tokens' rows, and a call that runs one decode step behind them."""
    chunk, random = min(512, context), numpy.random.default_rng(4)
    model.begin(batch, context + 16, max(chunk, batch), kv)
    for first in range(0, context, chunk):
        for sequence in range(batch):  # one after the other: a chunk fits
            tokens = random.integers(0, shape["vocab"], min(chunk, context - first))
            counts = [len(tokens) if index == sequence else 0 for index in range(batch)]
            starts = [first if index == sequence else 0 for index in range(batch)]
            model.step(tokens, starts, counts, False)
    tokens = random.integers(0, shape["vocab"], batch)
    return lambda _: model.step(tokens, [context] * batch, [1] * batch, True)


def decode(bench):
    """G8, G9: one token more for one sequence, and for 64."""
    shape, context = (TINY, 40) if bench.tiny else (LLAMA_8B, 1024)
    source, ours, bench.decode_shape = source_of(bench, shape), {}, (shape, context)
    for scheme, head, pdl in (("fp8_e4m3", "fp8_e4m3", 0), ("int4_group", "int8_channel", 0), ("int4_group", "int8_channel", 1)):
        model = Llama(bench.library, shape, scheme, source, head, pdl=pdl)
        for batch, kv, goal in ((1, "bf16", {"fp8_e4m3": "1.75x", "int4_group": "2.7x"}[scheme]), (3 if bench.tiny else 64, "s8", "1.8x")):
            if bench.clock.left() < 20 and not bench.tiny:
                bench.table.missing("G8" if batch == 1 else "G9", f"decode step {scheme} B={batch}", "no time left", goal)
                continue
            seconds, = bench.timer.wall([filled(bench, model, shape, batch, context, kv)])
            ours[scheme, batch, pdl] = seconds
            streamed = model.bytes - shape["vocab"] * shape["hidden"]  # of the embedding a few rows are read
            moved = streamed + 2 * batch * context * shape["layers"] * shape["kv_heads"] * shape["head_dim"] * (2 if kv == "bf16" else 1)
            bench.table.add("G8" if batch == 1 else "G9", f"decode step {scheme} B={batch} KV {kv}{' PDL' if pdl else ''}",
                            seconds if bench.timer.exact else None, share=bench.table.share("bytes", moved, seconds), goal=goal)
        model.close()
    bench.decode_steps = ours
    beside_torch(bench, compiled=False, least_seconds=15)


def compiled(bench):
    """The same beside torch.compile, which takes its time."""
    beside_torch(bench, compiled=True, least_seconds=75)


def beside_torch(bench, compiled, least_seconds):
    """What decode() measured, beside a step of torch's."""
    name = "torch bf16, CUDA graph" + (", compiled" if compiled else "")
    if bench.torch is None:
        bench.table.missing("G8", "decode step", f"{name}: no torch here")
        return
    goals = {("fp8_e4m3", 1): "1.75x", ("int4_group", 1): "2.7x", ("fp8_e4m3", 64): "1.8x"}
    for batch in sorted({batch for _, batch, _ in bench.decode_steps}):
        id, peer = "G8" if batch == 1 else "G9", None
        if bench.clock.left() < least_seconds and not bench.tiny:
            bench.table.missing(id, f"decode step B={batch}", f"no time left for {name}")
            continue
        try:
            peer = TorchLlama(bench.torch, bench.decode_shape[0], batch, bench.decode_shape[1])
            seconds, = bench.timer.wall([peer.captured(compiled)])
        except Exception as error:  # torch.compile raises what it likes
            bench.table.missing(id, f"decode step B={batch}", f"{name}: {type(error).__name__}: {str(error).splitlines()[:1]}")
            continue
        finally:
            del peer
            bench.torch.cuda.empty_cache()
        for (scheme, of_batch, pdl), ours in bench.decode_steps.items():
            if of_batch == batch:
                bench.table.add(id, f"decode step {scheme} B={batch}{' PDL' if pdl else ''}", ours, name, seconds,
                                goal=goals.get((scheme, batch), ""))


def generate(bench):
    """G8b: transformers, as one would write it first."""
    if bench.torch is None or bench.clock.left() < 45:
        bench.table.missing("G8b", "transformers.generate", "no torch here" if bench.torch is None else "no time left")
        return
    torch, shape = bench.torch, LLAMA_8B
    try:
        import transformers
        config = transformers.LlamaConfig(hidden_size=shape["hidden"], intermediate_size=shape["ffn"],
                                          num_hidden_layers=shape["layers"], num_attention_heads=shape["heads"],
                                          num_key_value_heads=shape["kv_heads"], vocab_size=shape["vocab"])
        with torch.device("cuda"):
            torch.set_default_dtype(torch.bfloat16)
            model = transformers.LlamaForCausalLM(config).eval()
    except Exception as error:  # not installed, or another interface
        bench.table.missing("G8b", "transformers.generate", f"{type(error).__name__}: {str(error).splitlines()[:1]}")
        return
    finally:
        torch.set_default_dtype(torch.float32)
    prompt = torch.randint(0, shape["vocab"], (1, 1024), device="cuda")
    def call(count):
        with torch.no_grad():
            model.generate(prompt, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0)
        torch.cuda.synchronize()
    short, long = bench.timer.wall([lambda _: call(1)], [lambda _: call(17)])
    for row in [row for row in bench.table.rows if row["id"] == "G8" and row["seconds"] and not row["peer"]]:
        bench.table.add("G8b", row["what"], row["seconds"], "transformers.generate bf16 eager", (long - short) / 16,
                        goal="7x" if "fp8" in row["what"] else "11x")


def prefill(bench):
    """G10: a prompt of 4096 tokens."""
    shape, count = (TINY, 70) if bench.tiny else (LLAMA_8B, 4096)
    source = source_of(bench, shape)
    tokens = numpy.random.default_rng(6).integers(0, shape["vocab"], count)
    for scheme, activation in (("fp8_e4m3", "fp8_token"), ("int8_channel", "a8_token"), ("int4_group", "fp8_block")):
        model = Llama(bench.library, shape, scheme, source, activation=activation)
        model.begin(1, count + 16, count)
        seconds, = bench.timer.wall([lambda _: model.step(tokens, [0], [count], False)])
        parameters = shape["layers"] * shape["hidden"] * ((2 * shape["heads"] + 2 * shape["kv_heads"]) * shape["head_dim"] + 3 * shape["ffn"])
        operations = 2 * count * parameters + 2 * count * count * shape["heads"] * shape["head_dim"] * shape["layers"]
        exact = bench.timer.exact
        bench.table.add("G10", f"prefill {count} tokens {scheme} {activation}", seconds if exact else None,
                        share=bench.table.share("bf16", operations, seconds), goal="55k tok/s" if scheme == "fp8_e4m3" else "",
                        note=f"{count / seconds / 1000:.1f}k tok/s" if exact else "")
        model.close()
