#!/usr/bin/env python3
"""What metrics cost, as a share of a request's CPU time, and how long a scrape of ten models takes.

usage: metrics_cost.py --build build/bench --repository MODELS [--model stories260k] [--seconds 10] [--clients 4]

There is no switch that turns metrics off. metrics_bench says how long all that is counted for one request takes, and what the
interceptor and the look for a trace add to an RPC; the server under load says how much CPU time a whole request takes.
The share of the two is what metrics can cost of throughput. Exit code 1: more than 1 %, or a scrape of more than 5 ms.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

from drift_cost import Server

TOKENS = (1, 8, 64)  # as metrics_bench has them
MOST_SHARE, MOST_SCRAPE_MS = 0.01, 5
NANOSECONDS = {"ns": 1, "us": 1e3, "ms": 1e6}


def bench(build):
    """{name: its JSON}, the fastest of repetitions that take turns, so that a busy machine spoils none; "ns": CPU time."""
    done = subprocess.run([pathlib.Path(build) / "tests/bench/metrics_bench", "--benchmark_format=json",
                           "--benchmark_repetitions=12", "--benchmark_enable_random_interleaving=true", "--benchmark_min_time=0.2"],
                          check=True, capture_output=True, text=True)
    found = {}
    for one in json.loads(done.stdout)["benchmarks"]:
        if one["run_type"] == "iteration":
            one["ns"] = one["cpu_time"] * NANOSECONDS[one["time_unit"]]
            found[one["run_name"]] = min(one, found.get(one["run_name"], one), key=lambda each: each["ns"])
    return found


def request_cpu(arguments, cache, tokens):
    """(CPU seconds of the server per request, requests per second)."""
    server = Server(arguments.build, arguments.repository, cache, ["--drift-rate", "0"])
    try:
        before = server.metric("process_cpu_seconds_total")
        command = [pathlib.Path(arguments.build) / "loadtest/loadtest_client", "--server", f"127.0.0.1:{server.grpc}", "--model",
                   arguments.model, "--clients", str(arguments.clients), "--seconds", str(arguments.seconds), "--max-tokens",
                   str(tokens)]
        load = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        return (server.metric("process_cpu_seconds_total") - before) / load["requests"], load["requests_per_s"]
    finally:
        server.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", required=True)
    parser.add_argument("--repository", required=True)
    parser.add_argument("--model", default="stories260k")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--clients", type=int, default=4)
    arguments = parser.parse_args()
    found = bench(arguments.build)
    rpc = {which: next(one["ns"] for key, one in found.items() if key.startswith(f"BM_Rpc/{which}")) for which in ("plain", "observed")}
    interceptor = max(0.0, rpc["observed"] - rpc["plain"])
    print("| tokens of a request | its CPU time, µs | requests/s | counting it, µs | interceptor and trace, µs | share |\n"
          "|---|---|---|---|---|---|")
    worst = 0.0
    with tempfile.TemporaryDirectory() as cache:
        for tokens in TOKENS:
            whole, per_second = request_cpu(arguments, cache, tokens)
            counting = found[f"BM_Request/traced/{tokens}"]["ns"]
            share = (counting + interceptor) / (1e9 * whole)
            worst = max(worst, share)
            print(f"| {tokens} | {1e6 * whole:.0f} | {per_second:.0f} | {counting / 1e3:.2f} | {interceptor / 1e3:.2f} | {100 * share:.2f} % |")
    slowest = 0.0
    for which in ("text", "open_metrics"):
        scrape = found[f"BM_Scrape/{which}"]
        slowest = max(slowest, scrape["ns"] / 1e6)
        print(f"scrape, {which}: {scrape['ns'] / 1e6:.2f} ms for {scrape['series']:.0f} series, {scrape['bytes'] / 1024:.0f} KiB")
    sys.exit(0 if worst < MOST_SHARE and slowest < MOST_SCRAPE_MS else 1)


if __name__ == "__main__":
    main()
