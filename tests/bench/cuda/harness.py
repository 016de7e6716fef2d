"""How times are taken and rows are printed.

Each side is a list of calls on rotated inputs, captured into one CUDA graph; sides take turns (A, B, A), and the median of the
samples counts. Without a GPU every call is made once, on the emulator, and its time means nothing.
"""

import math
import statistics
import time

SAMPLES = 50


class Clock:
    """What is left of a number of seconds."""

    def __init__(self, seconds):
        self.end = time.monotonic() + seconds

    def left(self):
        return self.end - time.monotonic()


class EmulatedTimer:
    exact = False

    def measure(self, *sides):
        times = []
        for calls in sides:
            begin = time.perf_counter()
            for call in calls:
                call(None)
            times.append((time.perf_counter() - begin) / len(calls))
        return times

    wall = measure


class GraphTimer:
    """Times in seconds per call."""

    exact = True

    def __init__(self, torch, seconds_each=1.0):
        self.torch, self.seconds_each = torch, seconds_each

    def _captured(self, calls):
        """A graph of the calls, again and again where they are short: its launch must not count; how many it makes."""
        torch = self.torch
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels and algorithms load lazily: not while capturing
            for call in calls:
                call(side.cuda_stream)
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for call in calls:
            call(torch.cuda.current_stream().cuda_stream)
        torch.cuda.synchronize()
        repeats = max(1, min(20, math.ceil(2e-3 / (time.perf_counter() - begin))))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls * repeats:
                call(torch.cuda.current_stream().cuda_stream)
        return graph, repeats * len(calls)

    def _sample(self, graph, count):
        begin, end = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / count

    def measure(self, *sides):
        graphs = [self._captured(calls) for calls in sides]
        clock, samples = Clock(self.seconds_each), [[] for _ in sides]
        order = [*range(len(sides)), *([0] if len(sides) > 1 else [])]
        for graph, _ in graphs:
            graph.replay()
        while len(samples[-1]) < SAMPLES and (clock.left() > 0 or len(samples[-1]) < 10):
            for side in order:
                samples[side].append(self._sample(*graphs[side]))
        return [statistics.median(times) for times in samples]

    def wall(self, *sides):
        """Of calls that wait for their result themselves, in turns, by the host's clock."""
        clock, samples = Clock(self.seconds_each), [[] for _ in sides]
        for calls in sides:
            for call in calls[:1] * 4:  # eager, captured, launched
                call(None)
        while len(samples[-1]) < SAMPLES and (clock.left() > 0 or len(samples[-1]) < 10):
            for index, calls in enumerate(sides):
                for call in calls:
                    begin = time.perf_counter()
                    call(None)
                    samples[index].append(time.perf_counter() - begin)
        return [statistics.median(times) for times in samples]


def rotations(set_bytes, l2_bytes):
    """How many sets of operands outgrow the cache three times."""
    return min(64, max(1, math.ceil(3 * l2_bytes / max(set_bytes, 1))))


class Table:
    """Rows of the result: what was measured, beside what, and what was aimed at."""

    def __init__(self):
        self.rows, self.roofs = [], {}

    def add(self, id, what, seconds=None, peer="", peer_seconds=None, value=None, share=None, goal="", note=""):
        """`value`: what is held against the goal, by default peer_seconds / seconds."""
        if value is None and seconds and peer_seconds:
            value = peer_seconds / seconds
        self.rows.append({"id": id, "what": what, "seconds": seconds, "peer": peer, "peer_seconds": peer_seconds,
                          "value": value, "share_of_roof": share, "goal": goal, "note": note})

    def missing(self, id, what, why, goal=""):
        self.add(id, what, goal=goal, note=f"not measured: {why}")

    def share(self, roof, amount, seconds):
        """Of a measured roof (bytes or operations per second)."""
        return amount / seconds / self.roofs[roof] if self.roofs.get(roof) and seconds else None

    def text(self):
        def number(value, form):
            return "-" if value is None else form.format(value)
        head = f"{'id':5}{'what':44}{'ours us':>10}{'peer us':>10}{'value':>9}{'roof':>7}  {'goal':10} peer, note"
        lines = [head, "-" * len(head)]
        for row in self.rows:
            micro = [None if row[key] is None else row[key] * 1e6 for key in ("seconds", "peer_seconds")]
            lines.append(f"{row['id']:5}{row['what'][:43]:44}{number(micro[0], '{:.1f}'):>10}{number(micro[1], '{:.1f}'):>10}"
                         f"{number(row['value'], '{:.3g}'):>9}{number(row['share_of_roof'], '{:.0%}'):>7}  {row['goal']:10} "
                         f"{', '.join(word for word in (row['peer'], row['note']) if word)}")
        return "\n".join(lines)
