"""Golden numbers of the weight schemes, from the tools whose formats they follow. Writes schemes.json.xz beside itself.

  python3 make.py     with torch 2.13.0 (CPU), torchao 0.18.0, bitsandbytes 0.50.2 (CPU), compressed-tensors 0.12.2, numpy 2.4.6
                      seed 3, 22 November 2026

What each entry holds is in `main`. Arrays are {"dtype", "shape", "base64" of the little-endian bytes}. MXFP4 and w4a8 have no
tool that runs on this CPU: they are the published formulas in NumPy float64 (microxcaling's shared exponent; QServe, section 3.2
of the paper), written independently of the C++.
"""

import base64
import json
import lzma
import os
import pathlib
import warnings

import numpy as np
import torch

warnings.filterwarnings("ignore")
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # bitsandbytes compiles some functions otherwise
import bitsandbytes.functional as bnb  # noqa: E402
from compressed_tensors.compressors.quantized_compressors.nvfp4_quantized import pack_fp4_to_uint8  # noqa: E402
from compressed_tensors.quantization import QuantizationArgs, QuantizationStrategy, QuantizationType  # noqa: E402
from compressed_tensors.quantization.lifecycle.forward import quantize  # noqa: E402
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam  # noqa: E402
from torchao.quantization.utils import (get_groupwise_affine_qparams,  # noqa: E402
                                        groupwise_affine_quantize_tensor_from_qparams)

N, K = 8, 512


def array(values):
    values = values.detach().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    return {"dtype": values.dtype.str, "shape": list(values.shape), "base64": base64.b64encode(values.tobytes()).decode()}


def bf16_bits(t):
    return t.contiguous().view(torch.int16).numpy().view(np.uint16)


def weights():
    rng = np.random.default_rng(3)
    w = rng.standard_normal((N, K)) * np.exp(rng.normal(-3, 1, (N, 1)))
    w[2, 17] *= 40  # an outlier
    w[3] += 2 * np.abs(w[3]).max()  # far from zero: the float zero point matters
    w[4, 64:128] = 0  # a block of zeros
    w[5] = rng.standard_t(2, K) * 0.01
    return torch.from_numpy(w.astype(np.float32))


def casts():
    """torch's casts of f32 numbers over the exponents of the 8-bit floats and around, middles of two codes included."""
    top = np.arange(0x36000, 0x48000, 16, dtype=np.uint32) << 12
    bits = np.concatenate([top, top + 0x8000, top + 0x8001, top | 0x80000000])
    x = torch.from_numpy(bits.view(np.float32).copy())
    return {"f32": array(x),
            "e4m3": array(x.to(torch.float8_e4m3fn).view(torch.uint8)),
            "e5m2": array(x.clamp(-57344, 57344).to(torch.float8_e5m2).view(torch.uint8))}


def decodes():
    codes = torch.arange(256, dtype=torch.uint8)
    return {name: array(codes.view(kind).float()) for name, kind in (
        ("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2), ("e8m0", torch.float8_e8m0fnu))}


def fp8(w, kind, largest):
    scale = w.abs().amax(1) / largest
    return {"scales": array(scale), "codes": array((w / scale[:, None]).clamp(-largest, largest).to(kind).view(torch.uint8))}


def torchao_int4(w, group):
    scales, zeros = get_groupwise_affine_qparams(w, 4, group, torch.bfloat16)
    packed = groupwise_affine_quantize_tensor_from_qparams(w, scales, zeros, 4, group)
    codes = packed if packed.shape == w.shape else torch.stack([packed >> 4, packed & 15], -1).reshape(w.shape)
    return {"scales": array(bf16_bits(scales)), "zeros": array(bf16_bits(zeros)), "codes": array(codes.to(torch.uint8))}


def bitsandbytes_4bit(w, kind, block):
    packed, state = bnb.quantize_4bit(w, blocksize=block, quant_type=kind)
    codes = torch.stack([packed >> 4, packed & 15], -1).reshape(w.shape)
    _, nested = bnb.quantize_4bit(w, blocksize=block, quant_type=kind, compress_statistics=True)
    return {"absmax": array(state.absmax), "codes": array(codes), "decoded": array(bnb.dequantize_4bit(packed, state)),
            "nested_codes": array(nested.absmax), "nested_absmax": array(nested.state2.absmax),
            "nested_offset": float(nested.offset), "values": array(bnb.get_4bit_type(kind, device="cpu"))}


def compressed_tensors_nvfp4(w):
    args = QuantizationArgs(num_bits=4, type=QuantizationType.FLOAT, strategy=QuantizationStrategy.TENSOR_GROUP, group_size=16,
                            symmetric=True)
    blocks = w.reshape(N, K // 16, 16)
    g = generate_gparam(w.min(), w.max())
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=g)
    codes = quantize(w, scale, zero, args, dtype=None, global_scale=g)
    return {"global_scale": float(g), "scales": array(scale.view(torch.uint8)), "packed": array(pack_fp4_to_uint8(codes))}


def compressed_tensors_int4(w):
    args = QuantizationArgs(num_bits=4, type=QuantizationType.INT, strategy=QuantizationStrategy.GROUP, group_size=128, symmetric=True)
    blocks = w.reshape(N, K // 128, 128)
    scale, _ = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
    return {"scales": array(scale)}


def mxfp4(w):
    blocks = w.numpy().astype(np.float64).reshape(N, K // 32, 32)
    absmax = np.abs(blocks).max(-1)
    exponent = np.where(absmax > 0, np.floor(np.log2(np.where(absmax > 0, absmax, 1))) - 2, -127).clip(-127, 127)
    x = blocks / 2.0 ** exponent[..., None]
    grid = np.array([0, .5, 1, 1.5, 2, 3, 4, 6])
    codes = np.zeros(x.shape, np.uint8)
    for c, (low, high) in enumerate(zip(grid[:-1], grid[1:])):  # half to even: an even code keeps the middle
        middle = (low + high) / 2
        codes[np.abs(x) > middle if c % 2 == 0 else np.abs(x) >= middle] = c + 1
    codes |= (np.signbit(x) << 3).astype(np.uint8)
    return {"scales": array((exponent + 127).astype(np.uint8)), "codes": array(codes.reshape(N, K))}


def w4a8(w, group):
    w = w.numpy().astype(np.float64)
    s1 = (np.abs(w).max(1) / 119).astype(np.float32).astype(np.float64)
    v8 = np.rint(w / s1[:, None]).reshape(N, K // group, group)
    low, high = np.minimum(v8.min(-1), 0), np.maximum(v8.max(-1), 0)
    s2 = np.maximum(1, np.rint((high - low) / 15))
    z = np.rint(-low / s2).clip(0, 15)
    step = (s1[:, None] * s2)[..., None]
    codes = (np.rint(w.reshape(v8.shape) / step) + z[..., None]).clip(0, 15)
    assert np.abs((codes - z[..., None]) * s2[..., None]).max() <= 127
    return {"row_scales": array(s1.astype(np.float32)), "scales": array(s2.astype(np.uint8)), "zeros": array(z.astype(np.uint8)),
            "codes": array(codes.reshape(N, K).astype(np.uint8))}


def main():
    w = weights()
    golden = {
        "w": array(w),
        "casts": casts(),
        "values": decodes(),
        "dynamic_map": array(bnb.create_dynamic_map().float()),
        "fp8_e4m3": fp8(w, torch.float8_e4m3fn, 448.0),
        "fp8_e5m2": fp8(w, torch.float8_e5m2, 57344.0),
        "int4_group:float": torchao_int4(w, 128),
        "int4_group:g32,float": torchao_int4(w, 32),
        "int4_group:full": compressed_tensors_int4(w),
        "nf4": bitsandbytes_4bit(w, "nf4", 64),
        "fp4": bitsandbytes_4bit(w, "fp4", 64),
        "nf4:b256": bitsandbytes_4bit(w, "nf4", 256),
        "nvfp4": compressed_tensors_nvfp4(w),
        "mxfp4": mxfp4(w),
        "w4a8": w4a8(w, 128),
        "w4a8:g32": w4a8(w, 32),
    }
    path = pathlib.Path(__file__).with_name("schemes.json.xz")
    path.write_bytes(lzma.compress(json.dumps(golden).encode(), preset=9))
    print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()
