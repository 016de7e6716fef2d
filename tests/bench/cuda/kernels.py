"""The C interface of kernels_abi.h for Python: the same structs and functions, by ctypes, and memory that they work on.

Arrays lie in device memory: torch tensors where there is a GPU, memory of the emulator's (the host's) where there is none.
"""

import ctypes
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_size_t, c_void_p

import numpy

FORMS = {"bf16": 0, "s8": 1, "e4m3": 2, "f32": 3}
ROW_CODES = {"a8_token": 0, "fp8_token": 1, "int8_channel": 2, "fp8_e4m3": 3}
KV_FORMATS = {"bf16": 0, "s8": 1, "e4m3": 2}


def struct(name, **fields):
    return type(name, (Structure,), {"_fields_": list(fields.items())})


Quantize = struct("Quantize", source=c_void_p, codes=c_void_p, scales=c_void_p, rows=c_int, k=c_int, to=c_int)
QuantizeInt4 = struct("QuantizeInt4", source=c_void_p, codes=c_void_p, scales=c_void_p, n=c_int, k=c_int, group=c_int)
Norm = struct("Norm", x=c_void_p, gain=c_void_p, out=c_void_p, scales=c_void_p, rows=c_int, width=c_int, form=c_int,
              eps=c_float)
Activate = struct("Activate", x=c_void_p, out=c_void_p, scales=c_void_p, rows=c_int, width=c_int, form=c_int)
Kv = struct("Kv", codes=c_void_p, scales=c_void_p, format=c_int, kv_heads=c_int, head_dim=c_int)
Rope = struct("Rope", qkv=c_void_p, inv_freq=c_void_p, positions=c_void_p, sequence_of_row=c_void_p, block_tables=c_void_p,
              q=c_void_p, rows=c_int, max_blocks=c_int, heads=c_int, kv=Kv)
Decode = struct("Decode", q=c_void_p, positions=c_void_p, sequence_of_row=c_void_p, block_tables=c_void_p, workspace=c_void_p,
                arrived=c_void_p, y=c_void_p, rows=c_int, max_blocks=c_int, heads=c_int, splits=c_int, scale=c_float, kv=Kv)
Prefill = struct("Prefill", q=c_void_p, tiles=c_void_p, block_tables=c_void_p, y=c_void_p, num_tiles=c_int, max_blocks=c_int,
                 heads=c_int, scale=c_float, kv=Kv)
Fp8 = struct("Fp8", x=c_void_p, w=c_void_p, x_scales=c_void_p, w_scales=c_void_p, y=c_void_p, algorithm=c_int)
Model = struct("Model", scheme=c_char_p, head_scheme=c_char_p, activation=c_char_p, weights=c_void_p, layers=c_int,
               hidden=c_int, heads=c_int, kv_heads=c_int, head_dim=c_int, ffn=c_int, vocab=c_int, max_context=c_int,
               splits=c_int, pdl=c_int, rope_theta=c_float, norm_eps=c_float)
Step = struct("Step", tokens=c_void_p, starts=c_void_p, counts=c_void_p, sequences=c_int, decode=c_int)
STRUCTS = (Quantize, QuantizeInt4, Norm, Activate, Kv, Rope, Decode, Prefill, Fp8, Model, Step)

INT, POINTER_RESULT = c_int, c_void_p
FUNCTIONS = {
    "error": (c_char_p,), "open": (INT, c_int), "device_name": (c_char_p,), "is_emulated": (INT,), "compute": (INT,),
    "l2_bytes": (c_size_t,), "allocate": (POINTER_RESULT, c_size_t), "free": (None, c_void_p, c_size_t),
    "upload": (INT, c_void_p, c_void_p, c_size_t), "download": (INT, c_void_p, c_void_p, c_size_t),
    "synchronize": (INT, c_void_p), "struct_bytes": (c_int, c_int),
    "quantize_rows": (INT, POINTER(Quantize), c_void_p), "quantize_int4": (INT, POINTER(QuantizeInt4), c_void_p),
    "norm": (INT, POINTER(Norm), c_void_p), "activate": (INT, POINTER(Activate), c_void_p),
    "rope_append": (INT, POINTER(Rope), c_void_p),
    "decode_workspace_bytes": (c_size_t, c_int, c_int, c_int, c_int),
    "decode_attention": (INT, POINTER(Decode), c_void_p), "prefill_attention": (INT, POINTER(Prefill), c_void_p),
    "linear_quantize": (POINTER_RESULT, c_char_p, c_char_p, c_int, c_int, c_void_p),
    "linear_upload": (POINTER_RESULT, c_char_p, c_int, c_int, c_void_p, c_void_p, c_size_t),
    "linear_form": (c_int, c_void_p, c_int), "linear_destroy": (None, c_void_p), "linear_bytes": (c_size_t, c_void_p), "linear_prepare": (INT, c_void_p, c_int),
    "linear_run": (INT, c_void_p, c_void_p, c_void_p, c_int, c_void_p, c_void_p),
    "fp8_create": (POINTER_RESULT, c_int, c_int, c_int), "fp8_destroy": (None, c_void_p),
    "fp8_algorithms": (c_int, c_void_p), "fp8_run": (INT, c_void_p, POINTER(Fp8), c_void_p),
    "model_create": (POINTER_RESULT, POINTER(Model)), "model_destroy": (None, c_void_p), "model_bytes": (c_size_t, c_void_p),
    "pass_create": (POINTER_RESULT, c_void_p, c_int, c_int, c_int, c_int), "pass_destroy": (None, c_void_p),
    "pass_step": (POINTER_RESULT, c_void_p, POINTER(Step)),
}
# What may return 0 or a number without that being an error.
PLAIN = {"error", "device_name", "is_emulated", "compute", "l2_bytes", "struct_bytes", "decode_workspace_bytes",
         "linear_bytes", "linear_form", "fp8_algorithms", "model_bytes", "free", "linear_destroy", "fp8_destroy", "model_destroy",
         "pass_destroy"}


class KernelError(RuntimeError):
    pass


class Library:
    """library.norm(byref(struct), stream), ...: raises KernelError with the library's words."""

    def __init__(self, path, device=0):
        loaded = ctypes.CDLL(str(path))
        for name, (result, *arguments) in FUNCTIONS.items():
            function = getattr(loaded, "assay_" + name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function if name in PLAIN else self._checked(name, function, result))
        for index, mirrored in enumerate(STRUCTS):
            if ctypes.sizeof(mirrored) != self.struct_bytes(index):
                raise KernelError(f"struct {mirrored.__name__} differs from kernels_abi.h")
        self.open(device)
        self.emulated = bool(self.is_emulated())
        self.name = self.device_name().decode()

    def _checked(self, name, function, result):
        def call(*arguments):
            value = function(*arguments)
            if (result is INT and value != 0) or (result is POINTER_RESULT and not value):
                raise KernelError(f"{name}: {self.error().decode()}")
            return value
        return call


def bf16_bits(values):
    """f32 to bf16, half to even, as uint16. Finite numbers."""
    bits = numpy.ascontiguousarray(values, numpy.float32).view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def from_bf16(bits):
    return (numpy.asarray(bits, numpy.uint32) << 16).view(numpy.float32)


NUMPY_OF = {"bf16": numpy.uint16, "f32": numpy.float32, "u8": numpy.uint8, "i32": numpy.int32}


class Array:
    """Device memory: pointer, shape, kind (bf16, f32, u8, i32); `tensor` where torch has it."""

    def __init__(self, memory, pointer, shape, kind, tensor=None):
        self.memory, self.pointer, self.shape, self.kind, self.tensor = memory, pointer, tuple(shape), kind, tensor
        self.bytes = int(numpy.prod(self.shape)) * numpy.dtype(NUMPY_OF[kind]).itemsize

    def raw(self):
        """A copy on the host, bf16 as uint16."""
        out = numpy.empty(self.shape, NUMPY_OF[self.kind])
        self.memory.library.synchronize(None)
        self.memory.library.download(self.pointer, out.ctypes.data, self.bytes)
        return out

    def values(self):
        """The same in f32 where it is bf16."""
        return from_bf16(self.raw()) if self.kind == "bf16" else self.raw()


class HostMemory:
    """Of the emulator's."""

    def __init__(self, library, seed=1):
        self.library, self.random = library, numpy.random.default_rng(seed)

    def empty(self, shape, kind):
        count = int(numpy.prod(shape)) * numpy.dtype(NUMPY_OF[kind]).itemsize
        return Array(self, self.library.allocate(max(count, 1)), shape, kind)

    def of(self, values, kind):
        host = bf16_bits(values) if kind == "bf16" else numpy.ascontiguousarray(values, NUMPY_OF[kind])
        array = self.empty(host.shape, kind)
        self.library.upload(host.ctypes.data, array.pointer, array.bytes)
        return array

    def zeros(self, shape, kind):
        return self.of(numpy.zeros(shape, NUMPY_OF[kind]), kind)

    def normal(self, shape, kind="bf16", deviation=1.0):
        return self.of(self.random.standard_normal(shape, numpy.float32) * deviation, kind)

    def bytes_below(self, shape, limit):
        return self.of(self.random.integers(0, limit, shape), "u8")


class TorchMemory:
    """Tensors on the GPU."""

    def __init__(self, library, torch, seed=1):
        self.library, self.torch = library, torch
        self.kinds = {"bf16": torch.bfloat16, "f32": torch.float32, "u8": torch.uint8, "i32": torch.int32}
        torch.manual_seed(seed)

    def _array(self, tensor, kind):
        return Array(self, tensor.data_ptr(), tensor.shape, kind, tensor)

    def empty(self, shape, kind):
        return self._array(self.torch.empty(tuple(shape), dtype=self.kinds[kind], device="cuda"), kind)

    def of(self, values, kind):
        tensor = self.torch.as_tensor(numpy.ascontiguousarray(values)).to("cuda", self.kinds[kind])
        return self._array(tensor.contiguous(), kind)

    def zeros(self, shape, kind):
        return self._array(self.torch.zeros(tuple(shape), dtype=self.kinds[kind], device="cuda"), kind)

    def normal(self, shape, kind="bf16", deviation=1.0):
        tensor = self.torch.randn(tuple(shape), dtype=self.kinds[kind], device="cuda")
        return self._array(tensor.mul_(deviation), kind)

    def bytes_below(self, shape, limit):
        return self._array(self.torch.randint(0, limit, tuple(shape), dtype=self.torch.uint8, device="cuda"), "u8")


class Linear:
    """A layer y f32 = x W^T; owns its weight."""

    def __init__(self, library, handle):
        self.library, self.handle = library, handle
        self.bytes = library.linear_bytes(handle)

    @classmethod
    def quantize(cls, library, scheme, weight, activation="a16"):
        n, k = weight.shape
        return cls(library, library.linear_quantize(scheme.encode(), activation.encode(), n, k, weight.pointer))

    @classmethod
    def upload(cls, library, scheme, shape, codes, scales):
        """Of codes and scales on the host, as the scheme draws them."""
        n, k = shape
        return cls(library, library.linear_upload(scheme.encode(), n, k, codes.ctypes.data, scales.ctypes.data, scales.nbytes))

    def prepare(self, rows):
        self.library.linear_prepare(self.handle, rows)

    def form(self, rows):
        """What run() wants of x: "bf16", or codes "s8", "e4m3" with scales."""
        return ("bf16", "s8", "e4m3")[self.library.linear_form(self.handle, rows)]

    def run(self, x, y, stream, x_scales=None):
        self.library.linear_run(self.handle, x.pointer, x_scales.pointer if x_scales else None, x.shape[0], y.pointer, stream)

    def __del__(self):
        self.library.linear_destroy(self.handle)


class Llama:
    """A model of random weights and a pass over it."""

    def __init__(self, library, shape, scheme, weights, head_scheme="int8_channel", activation="a16", splits=8, pdl=0):
        self.library, self.shape = library, shape
        args = Model(scheme=scheme.encode(), head_scheme=head_scheme.encode(), activation=activation.encode(),
                     weights=weights.pointer, splits=splits, pdl=pdl, **shape)
        self.handle, self.open_pass = library.model_create(byref(args)), None
        self.bytes = library.model_bytes(self.handle)

    def begin(self, sequences, context, rows, kv="bf16"):
        self.end()
        self.open_pass = self.library.pass_create(self.handle, sequences, context, rows, KV_FORMATS[kv])

    def step(self, tokens, starts, counts, decode):
        """Logits [.., vocab] of the last row of each sequence that has rows, valid until the next step."""
        tokens, starts, counts = (numpy.ascontiguousarray(v, numpy.int32) for v in (tokens, starts, counts))
        step = Step(tokens.ctypes.data, starts.ctypes.data, counts.ctypes.data, len(starts), int(decode))
        pointer = self.library.pass_step(self.open_pass, byref(step))
        flat = ctypes.cast(pointer, POINTER(c_float))
        return numpy.ctypeslib.as_array(flat, (int((counts > 0).sum()), self.shape["vocab"]))

    def end(self):
        if self.open_pass:
            self.library.pass_destroy(self.open_pass)
        self.open_pass = None

    def close(self):
        self.end()
        if self.handle:
            self.library.model_destroy(self.handle)
        self.handle = None


def pool(memory, format, blocks, kv_heads, head_dim, fill=True):
    """Keys and values of `blocks` pages of 16 positions (kv_layout.h), random; (Kv, arrays that it points to)."""
    shape, width = (blocks, kv_heads, 2, 16), (head_dim + 15) // 16 * 16
    if format == "bf16":
        codes, scales = (memory.normal if fill else memory.zeros)((*shape, width), "bf16"), None
    else:
        codes = memory.bytes_below((*shape, width), 120)  # no NaN of e4m3
        scales = memory.of(numpy.full(shape, 0.01, numpy.float32), "f32")
    kv = Kv(codes.pointer, scales.pointer if scales else None, KV_FORMATS[format], kv_heads, head_dim)
    return kv, (codes, scales)
