"""What instructions and registers a cubin's kernels have. usage: cuda_opcodes.py [--needs HMMA,LDGSTS] [--registers N] CUBIN...
                                                             cuda_opcodes.py --scan 75,80,86,89,90a,120 [--nvcc NVCC] [--jobs N]

--scan compiles every file of hot kernels (HOT) for these architectures, holds each kernel to what its file needs, and prints a table
(docs/performance.md): minutes. Otherwise it prints a line per kernel. With --needs every kernel must have these instructions; with --registers none may have more; none may
touch local memory (STL, LDL: spilled registers, arrays that are indexed at run time). Exits with 1 where that does not hold.

A cubin is an ELF file; from compute capability 7.0 on an instruction has 128 bits, and the low 12 are its opcode. The numbers here
were read from kernels of one instruction each, compiled by nvcc 13.0 for 8.6, 9.0 and 12.0.
"""

import argparse
import collections
import concurrent.futures
import pathlib
import struct
import subprocess
import sys
import tempfile

OPCODES = {0x23C: "HMMA", 0x237: "IMMA", 0xFAE: "LDGSTS", 0x83B: "LDSM", 0x983: "LDL", 0x387: "STL"}
LOCAL_MEMORY = ("LDL", "STL")
REGISTER_COUNT = 0x2F  # an attribute of .nv.info: index of the symbol, number
SYMBOL_BYTES = 24


ROOT = pathlib.Path(__file__).resolve().parent.parent
# Files of hot kernels -> what each of their kernels must have. 65536 registers are for one block of 256 threads, and 255 is what a
# thread can name.
MOST_REGISTERS = 255
HOT = {
    "quant/kernels/cuda/gemm16.cu": ("HMMA", "LDGSTS", "LDSM"),
    "quant/kernels/cuda/gemm_s8.cu": ("IMMA", "LDGSTS", "LDSM"),
    "quant/kernels/cuda/skinny_int4.cu": ("HMMA", "LDGSTS"),
    "quant/kernels/cuda/skinny_int8_channel.cu": ("HMMA", "LDGSTS"),
    "quant/kernels/cuda/skinny_int8_group.cu": ("HMMA", "LDGSTS"),
    "quant/kernels/cuda/skinny_e4m3.cu": ("HMMA", "LDGSTS"),
    "quant/kernels/cuda/skinny_nf4.cu": ("HMMA", "LDGSTS"),
    "engine/ops/cuda/decode_attention_bf16.cu": ("HMMA", "LDGSTS", "LDSM"),
    "engine/ops/cuda/decode_attention_f16.cu": ("HMMA", "LDGSTS", "LDSM"),
    "engine/ops/cuda/prefill_attention_bf16.cu": ("HMMA", "LDSM"),
    "engine/ops/cuda/prefill_attention_f16.cu": ("HMMA", "LDSM"),
    "engine/ops/cuda/encoder_attention.cu": ("HMMA", "LDSM"),
}


class CubinError(ValueError):
    pass


Kernel = collections.namedtuple("Kernel", "name opcodes registers")


def sections(data):
    """(name, type, content) of an ELF file of 64 bits."""
    if data[:5] != b"\x7fELF\x02":
        raise CubinError("no ELF file of 64 bits")
    offset, = struct.unpack_from("<Q", data, 40)
    each, count, of_names = struct.unpack_from("<HHH", data, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", data, offset + index * each) for index in range(count)]
    names = headers[of_names][4]
    for name, kind, _, _, begin, size, *_ in headers:
        end = data.index(b"\0", names + name)
        yield data[names + name:end].decode(), kind, data[begin:begin + size] if kind != 8 else b""


def symbol_names(found):
    """Of .symtab, by index."""
    table, strings = found.get(".symtab", b""), found.get(".strtab", b"")
    starts = [struct.unpack_from("<I", table, at)[0] for at in range(0, len(table), SYMBOL_BYTES)]
    return [strings[start:strings.index(b"\0", start)].decode() for start in starts]


def register_counts(found):
    """By kernel. Attributes: a format, a kind, and, where the format is 4, a length and so many bytes."""
    info, names, counts, at = found.get(".nv.info", b""), symbol_names(found), {}, 0
    while at + 4 <= len(info):
        form, kind, length = struct.unpack_from("<BBH", info, at)
        if form == 4 and kind == REGISTER_COUNT:
            symbol, count = struct.unpack_from("<II", info, at + 4)
            counts[names[symbol]] = count
        at += 4 + (length if form == 4 else 0)
    return counts


def kernels(data):
    """Every kernel of a cubin."""
    found = {name: content for name, _, content in sections(data)}
    registers = register_counts(found)
    result = []
    for name, content in found.items():
        if not name.startswith(".text."):
            continue
        words = (struct.unpack_from("<Q", content, at)[0] & 0xFFF for at in range(0, len(content) - 15, 16))
        opcodes = collections.Counter(OPCODES[word] for word in words if word in OPCODES)
        kernel = name.removeprefix(".text.")
        result.append(Kernel(kernel, opcodes, registers.get(kernel, 0)))
    if not result:
        raise CubinError("no kernel")
    return result


def problems(kernel, needs, most_registers):
    """One line for each thing that is not as it should be."""
    found = [f"{kernel.name}: has no {opcode}" for opcode in needs if not kernel.opcodes[opcode]]
    found += [f"{kernel.name}: touches local memory: {opcode} x {kernel.opcodes[opcode]}" for opcode in LOCAL_MEMORY
              if kernel.opcodes[opcode]]
    if kernel.registers > most_registers:
        found.append(f"{kernel.name}: {kernel.registers} registers of at most {most_registers}")
    return found


def needs_of(source, architecture):
    """Instructions that the kernels of a file must have there: asynchronous copies began with 8.0."""
    return [opcode for opcode in HOT[source] if opcode != "LDGSTS" or architecture != "75"]


def scan(architectures, nvcc, jobs):
    """Compiles and looks. Returns lines of a table and what is wrong."""
    def look(task):
        source, architecture = task
        with tempfile.TemporaryDirectory() as folder:
            cubin = pathlib.Path(folder) / "out.cubin"
            subprocess.run([nvcc, "-std=c++20", f"-arch=sm_{architecture}", "-fmad=false", f"-I{ROOT}", "-cubin", ROOT / source,
                            "-o", cubin], check=True)
            return source, architecture, kernels(cubin.read_bytes())

    table, wrong = ["| kernels | architecture | kernels | registers | instructions | local memory |", "|---|---|---|---|---|---|"], []
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        for source, architecture, found in pool.map(look, [(s, a) for s in HOT for a in architectures]):
            needs = needs_of(source, architecture)
            used = [kernel for kernel in found if not is_left_out(kernel, architecture)]
            if not used:
                continue  # a file of bf16 alone
            for kernel in used:
                wrong += [f"{source} sm_{architecture}: {line}" for line in problems(kernel, needs, MOST_REGISTERS)]
            counts = ", ".join(f"{opcode} >= {min(kernel.opcodes[opcode] for kernel in used)}" for opcode in needs)
            local = sum(kernel.opcodes[opcode] for kernel in used for opcode in LOCAL_MEMORY)
            table.append(f"| {pathlib.Path(source).stem} | sm_{architecture} | {len(used)} | "
                         f"{max(kernel.registers for kernel in used)} | {counts} | {local or 'none'} |")
            print(table[-1], flush=True)
    return table, wrong


def is_left_out(kernel, architecture):
    """Kernels of bf16 have no body before 8.0: they are refused there before they are launched."""
    return architecture == "75" and "Bf16" in kernel.name


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--needs", default="")
    parser.add_argument("--registers", type=int, default=255)
    parser.add_argument("--scan", default="")
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("cubins", nargs="*", type=pathlib.Path)
    arguments = parser.parse_args()
    if bool(arguments.scan) == bool(arguments.cubins):
        parser.error("either --scan or cubins")
    if arguments.scan:
        _, wrong = scan(arguments.scan.split(","), arguments.nvcc, arguments.jobs)
        print("\n".join(wrong), file=sys.stderr)
        return 1 if wrong else 0
    needs = [opcode for opcode in arguments.needs.split(",") if opcode]
    wrong = []
    for path in arguments.cubins:
        for kernel in kernels(path.read_bytes()):
            print(f"{path.name}: {kernel.name}: registers {kernel.registers}, {dict(kernel.opcodes)}")
            wrong += problems(kernel, needs, arguments.registers)
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
