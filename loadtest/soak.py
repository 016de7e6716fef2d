"""Many streaming clients for a while, some of which cancel or run out of time; then SIGTERM under that load.

usage: soak.py [--seconds 60] [--clients 64] [--pause 0] [--csv FILE]     (ASSAY_BUILD_DIR: the build tree, default build/dev)

Fails unless: no request ends in an error that the client did not ask for; memory is flat after the warm-up; threads and file descriptors are
no more at the end than after the warm-up; every request that was accepted before SIGTERM comes to its end; the server exits with 0.
"""

import argparse
import collections
import pathlib
import random
import sys
import tempfile
import threading
import time

import grpc

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "tests" / "e2e"))
from conftest import Assay, Server, make_repository  # noqa: E402

PROMPTS = ["Once upon a time", "The sun was warm and", "Tom and his dog went to the park", "Lily saw a big"]
GROWTH = 32 << 20  # of the resident set after the warm-up: noise of the allocators of two dozen threads
SAMPLES = 240  # of a run; at most one a second
# gRPC keeps two threads more or less, connections of scrapes come and go.
SPARE = 4

Sample = collections.namedtuple("Sample", "seconds resident threads files")


def look(server, since):
    process = pathlib.Path(f"/proc/{server.process.pid}")
    return Sample(time.monotonic() - since, server.resident_bytes(), len(list((process / "task").iterdir())),
                  len(list((process / "fd").iterdir())))


def slope(samples):
    """Least squares of the resident set: (bytes per second, its standard error)."""
    count = len(samples)
    x = [sample.seconds for sample in samples]
    y = [sample.resident for sample in samples]
    mean_x, mean_y = sum(x) / count, sum(y) / count
    spread = sum((a - mean_x) ** 2 for a in x)
    per_second = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / spread
    rest = sum((b - mean_y - per_second * (a - mean_x)) ** 2 for a, b in zip(x, y))
    return per_second, (rest / (count - 2) / spread) ** 0.5


class Load:
    """Clients that work until they are told to stop. Counts how their requests end."""

    def __init__(self, address, clients, pause=0.0):
        self.address, self.pause, self.counts, self.errors = address, pause, {}, []
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,)) for i in range(clients)]

    def start(self):
        for thread in self._threads:
            thread.start()
        return self

    def stop(self):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def total(self):
        with self._lock:
            return sum(self.counts.values())

    def _count(self, outcome, error=None):
        with self._lock:
            self.counts[outcome] = self.counts.get(outcome, 0) + 1
            if error is not None:
                self.errors.append(error)

    def _run(self, number):
        rng = random.Random(number)
        assay = Assay(self.address)
        while not self._stop.wait(rng.expovariate(1 / self.pause) if self.pause else 0):
            kind = rng.choices(["finish", "cancel", "expire"], [8, 1, 1])[0]
            if not self._request(assay, rng, kind):
                return

    def _request(self, assay, rng, kind):
        """One request; False when the server refuses because it drains."""
        messages, done = 0, False
        call = assay.generate(rng.choice(PROMPTS), max_tokens=rng.randint(8, 96), ignore_eos=True,
                              temperature=0.8, seed=rng.randint(0, 1 << 30),
                              timeout=0.03 if kind == "expire" else 300)
        try:
            for message in call:
                messages += 1
                done = message.done
                if kind == "cancel" and messages == 3:
                    call.cancel()
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
            if kind == "cancel" and code == grpc.StatusCode.CANCELLED:
                self._count("cancelled")
                return True
            if kind == "expire" and code == grpc.StatusCode.DEADLINE_EXCEEDED:
                self._count("expired")
                return True
            refused = messages == 0 and code == grpc.StatusCode.UNAVAILABLE
            if refused and ("draining" in text or "connect" in text.lower()):
                self._count("refused")
                return False
            self._count("lost" if messages else "failed", f"{kind} after {messages} messages: {code} {text}")
            return False
        self._count("finished" if done else "failed", None if done else "the stream ended without its last message")
        return True


def watch(server, seconds):
    """A sample now and then, for so long."""
    since, samples = time.monotonic(), []
    while time.monotonic() - since < seconds:
        samples.append(look(server, since))
        time.sleep(max(1.0, seconds / SAMPLES))
    return samples


def soak(seconds, clients, folder, pause=0.0):
    """Runs the whole scenario; returns what it saw, and the samples. AssertionError when a promise is broken."""
    server = Server(folder, "--model-repository", make_repository(folder), "--strict-readiness", "false",
                    "--drain-timeout", "120s").wait_ready()
    try:
        load = Load(server.address, clients, pause).start()
        warm_up = min(seconds / 4, 300)
        time.sleep(warm_up)
        samples = watch(server, seconds - warm_up)
        first, last = samples[0], samples[-1]
        growth = last.resident - first.resident
        assert not load.errors, load.errors[:5]
        assert "refused" not in load.counts, load.counts
        finished_before = load.counts.get("finished", 0)
        server.terminate()
        load.stop()
        assert not load.errors, load.errors[:5]
        assert server.wait() == 0, server.log()
        assert growth < GROWTH, f"resident memory grew by {growth >> 20} MiB in {seconds - warm_up:.0f} s"
        assert last.threads <= first.threads + SPARE and last.files <= first.files + SPARE, (first, last)
        assert "clean=true" in server.log()
        per_second, error = slope(samples)
        return {"finished_before_sigterm": finished_before, "growth_bytes": growth,
                "resident_mib": f"{first.resident / 2**20:.1f}..{last.resident / 2**20:.1f}",
                "slope_kib_per_hour": f"{per_second * 3600 / 1024:.0f}+-{2 * error * 3600 / 1024:.0f}",
                "threads": f"{first.threads}..{last.threads}", "files": f"{first.files}..{last.files}",
                **load.counts}, samples
    finally:
        server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--pause", type=float, default=0, help="seconds between the requests of a client, on average")
    parser.add_argument("--csv", type=pathlib.Path, help="file for the samples of memory, threads and file descriptors")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seen, samples = soak(options.seconds, options.clients, pathlib.Path(folder), options.pause)
    if options.csv:
        lines = [",".join(Sample._fields)] + [",".join(f"{value:.0f}" for value in sample) for sample in samples]
        options.csv.write_text("\n".join(lines) + "\n")
    print(", ".join(f"{key}={value}" for key, value in sorted(seen.items())))


if __name__ == "__main__":
    main()
