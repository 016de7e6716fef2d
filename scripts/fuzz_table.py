#!/usr/bin/env python3
"""Keeps the books of scripts/fuzz in build/fuzz/runs.jsonl.

    fuzz_table.py add NAME LOG EXIT_CODE    notes what libFuzzer said at the end of a run
    fuzz_table.py show                      a table of all runs: Markdown
"""
import json
import pathlib
import re
import sys
import time

RUNS = pathlib.Path("build/fuzz/runs.jsonl")
STATUS = re.compile(r"^#(\d+)\s+\S+\s+cov: (\d+) ft: (\d+) corp: (\d+)/(\S+)", re.MULTILINE)
DONE = re.compile(r"^Done (\d+) runs in (\d+) second", re.MULTILINE)
EXECUTED = re.compile(r"^stat::number_of_executed_units:\s+(\d+)", re.MULTILINE)
RATE = re.compile(r"^stat::average_exec_per_sec:\s+(\d+)", re.MULTILINE)


def last(pattern, text):
    found = pattern.findall(text)
    return found[-1] if found else None


def parse(text, code):
    """What one run's log says. Seconds are executions by their rate where libFuzzer did not come to its end."""
    status, done = last(STATUS, text), last(DONE, text)
    executed = int(last(EXECUTED, text) or (status[0] if status else 0))
    rate = int(last(RATE, text) or 0)
    seconds = int(done[1]) if done else executed / rate if rate else 0
    return {"executions": executed, "seconds": seconds, "edges": int(status[1]) if status else 0,
            "features": int(status[2]) if status else 0, "corpus": int(status[3]) if status else 0, "findings": int(code != 0)}


def add(name, log, code):
    text = pathlib.Path(log).read_text(errors="replace")
    run = {"target": name, "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())} | parse(text, code)
    RUNS.parent.mkdir(parents=True, exist_ok=True)
    with RUNS.open("a") as file:
        file.write(json.dumps(run) + "\n")


def table(runs):
    """Rows of Markdown: sums over a target's runs, what its last one that came to its end covered, a total."""
    lines = ["| target | executions | hours | per second | edges | corpus | findings |", "|---|---|---|---|---|---|---|"]
    totals = [0, 0.0, 0]
    for name in sorted({run["target"] for run in runs}):
        own = [run for run in runs if run["target"] == name]
        executions, seconds = sum(run["executions"] for run in own), sum(run["seconds"] for run in own)
        findings = sum(run["findings"] for run in own)
        edges, corpus = max(run["edges"] for run in own), max(run["corpus"] for run in own)
        rate = executions / seconds if seconds else 0
        lines.append(f"| {name} | {executions:,} | {seconds / 3600:.2f} | {rate:,.0f} | {edges:,} | {corpus:,} | {findings} |")
        totals = [totals[0] + executions, totals[1] + seconds, totals[2] + findings]
    lines.append(f"| all | {totals[0]:,} | {totals[1] / 3600:.2f} | {totals[0] / totals[1] if totals[1] else 0:,.0f} | | | {totals[2]} |")
    return lines


def main():
    if sys.argv[1:2] == ["add"] and len(sys.argv) == 5:
        add(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    elif sys.argv[1:] == ["show"]:
        runs = [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []
        print("\n".join(table(runs)))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()
