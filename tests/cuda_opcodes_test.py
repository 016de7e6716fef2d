"""Hot kernels have the instructions that they are written for, and no local memory. Skipped where no toolkit built them."""

import os
import pathlib
import struct
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import cuda_opcodes  # noqa: E402

# Of the files that `make test` compiles for this; `cuda_opcodes.py --scan` looks at all of them on all architectures.
BUILT = {"gemm16", "gemm_s8", "skinny_int4", "decode_attention_bf16", "prefill_attention_bf16"}


def cubins():
    """(name of the kernels' file, path) of what was built."""
    built = pathlib.Path(os.environ.get("ASSAY_BUILD_DIR", ROOT / "build" / "dev")) / "cubins"
    return [(path.name.split(".")[0], path) for path in sorted(built.glob("*.cubin"))]


def instruction(opcode):
    return struct.pack("<QQ", opcode, 0)


def cubin(code):
    """An ELF file with one kernel, f."""
    names = b"\0.text.f\0.names\0"
    begin = 64
    contents = [(0, 0, b""), (1, 1, code), (9, 3, names)]
    headers, body = b"", b""
    for name, kind, content in contents:
        headers += struct.pack("<IIQQQQIIQQ", name, kind, 0, 0, begin + len(body), len(content), 0, 0, 0, 0)
        body += content
    start = begin + len(body)
    identity = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = identity + struct.pack("<HHIQQQIHHHHHH", 2, 190, 1, 0, 0, start, 0, 64, 0, 0, 64, len(contents), 2)
    return header + body + headers


def test_hot_kernels_are_what_they_are_meant_to_be():
    if not cubins():
        pytest.skip("SKIPPED: no cubins: no nvcc where this was built")
    wrong = []
    for name, path in cubins():
        needs, = (needs for source, needs in cuda_opcodes.HOT.items() if pathlib.Path(source).stem == name)
        for kernel in cuda_opcodes.kernels(path.read_bytes()):
            wrong += [f"{path.name}: {line}" for line in cuda_opcodes.problems(kernel, needs, cuda_opcodes.MOST_REGISTERS)]
            assert kernel.registers > 0
    assert wrong == []


def test_every_hot_file_is_built():
    if not cubins():
        pytest.skip("SKIPPED: no cubins: no nvcc where this was built")
    assert {name for name, _ in cubins()} == BUILT


def test_notices_local_memory_and_what_is_missing():
    code = instruction(0x23C) + instruction(0x387) + instruction(0x983) + instruction(0x983)
    kernel, = cuda_opcodes.kernels(cubin(code))
    assert kernel.opcodes == {"HMMA": 1, "STL": 1, "LDL": 2}
    assert cuda_opcodes.problems(kernel, ("HMMA", "LDSM"), 255) == [
        "f: has no LDSM", "f: touches local memory: LDL x 2", "f: touches local memory: STL x 1"]


def test_only_the_low_twelve_bits_are_the_opcode():
    kernel, = cuda_opcodes.kernels(cubin(instruction(0x12345F237) + instruction(0x7000)))
    assert kernel.opcodes == {"IMMA": 1}


def test_notices_too_many_registers():
    kernel = cuda_opcodes.Kernel("f", {"HMMA": 1, "LDL": 0, "STL": 0}, 200)
    assert cuda_opcodes.problems(kernel, (), 168) == ["f: 200 registers of at most 168"]


def test_what_older_devices_do_not_have_is_not_asked_of_them():
    source = "quant/kernels/cuda/gemm16.cu"
    assert cuda_opcodes.needs_of(source, "75") == ["HMMA", "LDSM"]
    assert cuda_opcodes.needs_of(source, "80") == ["HMMA", "LDGSTS", "LDSM"]
    bf16 = cuda_opcodes.Kernel("SkinnyKernelINS0_9Nf4FormatENS0_4Bf16E", {}, 64)
    assert cuda_opcodes.is_left_out(bf16, "75") and not cuda_opcodes.is_left_out(bf16, "80")
    assert not cuda_opcodes.is_left_out(bf16._replace(name="SkinnyKernelINS0_9Nf4FormatENS0_3F16E"), "75")


def test_every_hot_file_is_there():
    assert [source for source in cuda_opcodes.HOT if not (ROOT / source).is_file()] == []


def test_refuses_what_is_no_cubin():
    with pytest.raises(cuda_opcodes.CubinError):
        cuda_opcodes.kernels(b"text")
    with pytest.raises(cuda_opcodes.CubinError, match="no kernel"):
        cuda_opcodes.kernels(cubin(b"").replace(b".text.f", b".data.f"))
