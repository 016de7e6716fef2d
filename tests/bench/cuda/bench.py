"""Kernels and steps of the CUDA backend beside torch's, in one process. Usage: bench.py --library libassay_kernels.so ...

Measures this device's roofs first, then the goals G1 to G12 (docs/performance.md), each as a ratio to a peer that runs in turns
with ours, or as a share of a measured roof. Prints a table and writes JSON. With the emulator's library the same code runs on
tiny shapes, without torch: its times mean nothing and are left out.
"""

import argparse
import json
import pathlib
import platform
import ssl  # noqa: F401  its libcrypto first: the library brings an older one of the same name
import sys
import time
import traceback

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import attending  # noqa: E402
import checks  # noqa: E402
import kernels  # noqa: E402
import products  # noqa: E402
import steps  # noqa: E402
from harness import Clock, EmulatedTimer, GraphTimer, Table  # noqa: E402

# What is most wanted comes first: the time may end.
SECTIONS = {"roofs": products.roofs, "few_rows": products.few_rows, "decode": steps.decode, "decode_attention": attending.decode,
            "prefill_attention": attending.prefill, "fp8": products.fp8, "rows": attending.rows_of_forms, "prefill": steps.prefill,
            "admission": products.admission, "many_rows": products.many_rows, "compiled": steps.compiled,
            "generate": steps.generate}


class Bench:
    """What sections share: library, memory, torch or None, timer, table, clock."""

    def __init__(self, library, torch, seconds):
        self.library, self.torch, self.table, self.clock = library, torch, Table(), Clock(seconds)
        self.decode_steps, self.decode_shape = {}, None  # of steps.decode
        self.tiny = library.emulated
        self.l2_bytes = 1 if self.tiny else library.l2_bytes()
        self.memory = kernels.HostMemory(library) if torch is None else kernels.TorchMemory(library, torch)
        self.timer = EmulatedTimer() if torch is None else GraphTimer(torch)

    def compare(self, id, what, calls, peer="", make_peer=None, goal="", roof=None):
        """Ours in turns with the peer that make_peer() makes, if there is torch; `roof`: its name and what a call moves or does."""
        sides, note = [calls], ""
        if make_peer is not None and self.torch is not None:
            try:
                sides.append(make_peer())
                times = self.timer.measure(*sides)
            except (RuntimeError, AttributeError, NotImplementedError) as error:
                note, sides = f"peer failed: {str(error).splitlines()[0][:100]}", [calls]
        elif make_peer is not None:
            note = "no torch here"
        if len(sides) == 1:
            times = self.timer.measure(calls)
        seconds = times[0] if self.timer.exact else None
        share = self.table.share(*roof, times[0]) if roof else None
        self.table.add(id, what, seconds, peer, times[1] if len(times) > 1 else None, share=share,
                       value=share if not peer else None, goal=goal, note=note)

    def against_torch(self, id, what, seconds, goal, make):
        """A time of ours beside make()'s (name, call)."""
        try:
            name, call = make()
            peer_seconds, = self.timer.measure([call])
            self.table.add(id, what, seconds, f"SDPA {name}", peer_seconds, goal=goal)
        except (RuntimeError, SystemError, SystemExit) as error:
            self.table.missing(id, what, str(error).splitlines()[0], goal)


def load_torch(library):
    """torch where there is a GPU; None on the emulator."""
    if library.emulated:
        return None
    import torch
    if not torch.cuda.is_available():
        raise SystemExit("bench: torch sees no GPU")
    return torch


def run_section(bench, name):
    begin = time.monotonic()
    try:
        SECTIONS[name](bench)
        return {"section": name, "ok": True, "seconds": time.monotonic() - begin}
    except Exception as error:  # one section must not cost the others
        traceback.print_exc()
        if bench.tiny:
            raise
        bench.table.missing(name[:4], name, f"{type(error).__name__}: {str(error).splitlines()[:1]}")
        return {"section": name, "ok": False, "seconds": time.monotonic() - begin, "error": repr(error)}
    finally:
        if bench.torch is not None:
            bench.torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--library", required=True, type=pathlib.Path)
    parser.add_argument("--json", type=pathlib.Path, help="where results go besides the table")
    parser.add_argument("--seconds", type=float, default=300, help="sections that would begin later are left out")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="of: " + ", ".join(SECTIONS))
    arguments = parser.parse_args()
    library = kernels.Library(arguments.library.resolve())
    torch = load_torch(library)
    bench = Bench(library, torch, arguments.seconds)
    print(f"bench: {library.name}, compute capability {library.compute()}, torch {torch.__version__ if torch else 'absent'}")
    notes = checks.run(library, bench.memory)
    print(f"bench: values of all functions agree with numpy {'; '.join(notes)}")
    ran = []
    for name in arguments.sections.split(","):
        if bench.clock.left() <= 0:
            bench.table.missing(name[:4], name, "no time left")
            continue
        ran.append(run_section(bench, name))
        print(f"bench: {name} {'ok' if ran[-1]['ok'] else 'FAILED'} {ran[-1]['seconds']:.1f} s", flush=True)
    print(bench.table.text())
    if arguments.json:
        arguments.json.write_text(json.dumps({
            "device": library.name, "emulated": library.emulated, "torch": torch.__version__ if torch else None,
            "python": platform.python_version(), "roofs": bench.table.roofs, "sections": ran, "rows": bench.table.rows,
            "notes": notes}, indent=1))
    sys.exit(0 if all(section["ok"] for section in ran) else 1)


if __name__ == "__main__":
    main()
