"""What watching live traffic costs: throughput and latency with drift.rate 0 and at the defaults, in one run, alternating.

usage: drift_cost.py --build build/bench --repository MODELS --model smollm2 [--rounds 3] [--seconds 15] [--clients 4]
                     [--max-tokens 64] [--options "--drift-rate 0.05"]

Each round starts a server with the shadow off and one with it on (the same artifact cache), drives loadtest_client against it
and stops it. The table has medians over the rounds and the ratio on / off; every request must succeed.
"""
import argparse
import json
import pathlib
import re
import signal
import statistics
import subprocess
import tempfile
import time
import urllib.request


class Server:
    def __init__(self, build, repository, cache, extra):
        self.log = tempfile.NamedTemporaryFile("w+", suffix=".log")
        self.process = subprocess.Popen(
            [pathlib.Path(build) / "server/assay-server", "--model-repository", repository, "--cache-dir", cache, "--grpc-port", "0",
             "--http-port", "0", "--admin-port", "-1", "--strict-readiness", "false", *extra], stderr=self.log, stdout=self.log)
        until = time.monotonic() + 600
        while time.monotonic() < until:
            text = pathlib.Path(self.log.name).read_text()
            ports = re.search(r"gRPC\s+\S*?:(\d+).*?HTTP\s+\S*?:(\d+)", text, re.DOTALL)
            if ports and self.ready(int(ports.group(2))):
                self.grpc, self.http = int(ports.group(1)), int(ports.group(2))
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.2)
        raise SystemExit("the server did not become ready:\n" + text)

    @staticmethod
    def ready(http):
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{http}/readyz", timeout=2).status == 200
        except OSError:
            return False

    def metric(self, name):
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=5).read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def measure(arguments, cache, extra):
    server = Server(arguments.build, arguments.repository, cache, extra)
    try:
        command = [pathlib.Path(arguments.build) / "loadtest/loadtest_client", "--server", f"127.0.0.1:{server.grpc}", "--model",
                   arguments.model, "--clients", str(arguments.clients), "--seconds", str(arguments.seconds), "--max-tokens",
                   str(arguments.max_tokens)]
        load = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        load["looked_at"] = server.metric("assay_drift_shadow_samples_total")
        load["shadow_cpu"] = server.metric("assay_drift_shadow_cpu_seconds_total")
        return flat(load)
    finally:
        server.stop()


def flat(figures, prefix=""):
    """Numbers by dotted name."""
    numbers = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            numbers |= flat(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            numbers[prefix + name] = value
    return numbers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True)
    parser.add_argument("--repository", required=True)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--options", default="", help="of the server whose shadow is on")
    arguments = parser.parse_args()
    runs = {"off": [], "on": []}
    with tempfile.TemporaryDirectory() as cache:
        Server(arguments.build, arguments.repository, cache, ["--drift-rate", "0"]).stop()  # fills the cache
        for _ in range(arguments.rounds):
            runs["off"].append(measure(arguments, cache, ["--drift-rate", "0"]))
            runs["on"].append(measure(arguments, cache, arguments.options.split()))
    names = list(runs["off"][0])
    print("| figure | shadow off | shadow on | ratio |\n|---|---|---|---|")
    for name in names:
        off, on = (statistics.median(run[name] for run in runs[which]) for which in ("off", "on"))
        print(f"| {name} | {off:.5g} | {on:.5g} | {f'{on / off:.3f}' if off else ''} |")


if __name__ == "__main__":
    main()
