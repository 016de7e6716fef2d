"""assay-load against the real server: its counts are the server's, and a server that stands still is seen."""

import json
import signal
import subprocess
import threading

import pytest
from conftest import BUILD, Server, clean_environment, make_repository, wait_until

PROGRAM = BUILD / "loadtest" / "assay-load"
STALL_SECONDS = 1.0


@pytest.fixture
def run(tmp_path):
    """Runs a scenario given as text: (exit code, report or None, stdout, stderr)."""

    def start(text, *arguments):
        (tmp_path / "scenario.yaml").write_text(text)
        out = tmp_path / "out"
        done = subprocess.run([PROGRAM, "run", tmp_path / "scenario.yaml", "--out", out, *map(str, arguments)],
                              capture_output=True, text=True, timeout=120, env=clean_environment())
        report = json.loads((out / "report.json").read_text()) if (out / "report.json").exists() else None
        return done.returncode, report, done.stdout, done.stderr

    return start


@pytest.fixture
def own(tmp_path):
    started = Server(tmp_path, "--model-repository", make_repository(tmp_path), "--strict-readiness", "false").wait_ready()
    yield started
    started.stop()


MIXED = """
protocol: {protocol}
requests:
  - {{name: chat, call: generate, model: stories260k, weight: 3, prompt_words: 8, answer_tokens: 8}}
  - {{name: goes, call: generate, model: stories260k, weight: 1, prompt_words: 8, answer_tokens: 300, cancel_after: 2}}
  - {{name: wrong, call: generate, model: stories260k, weight: 1, prompt_words: 8, answer_tokens: 100000}}
  - {{name: embed, call: embed, model: tiny_bert, weight: 2, prompt_words: 4}}
phases:
  - {{name: open, seconds: 2, arrivals: {{poisson: 40}}}}
  - {{name: closed, seconds: 0.5, arrivals: {{closed: 2}}}}
"""


@pytest.mark.parametrize("protocol", ["assay", "oip"])
def test_the_reports_counts_are_the_servers(own, run, protocol):
    # The generator may be late on a busy machine (exit code 3): counts are counts all the same.
    code, report, text, errors = run(MIXED.format(protocol=protocol), "--server", own.address, "--metrics",
                                     f"127.0.0.1:{own.http_port()}")
    assert code in (0, 3), errors
    outcomes, kinds = report["totals"]["outcomes"], report["kinds"]
    assert set(outcomes) <= {"OK", "CANCELLED (ours)", "INVALID_ARGUMENT"} and outcomes["OK"] > 20, outcomes
    assert kinds["wrong"]["outcomes"].keys() == {"INVALID_ARGUMENT"}
    assert kinds["embed"]["outcomes"].keys() == {"OK"} and kinds["chat"]["outcomes"].keys() == {"OK"}
    assert kinds["goes"]["outcomes"].get("CANCELLED (ours)", 0) > 0
    # A request that its client cancelled may have ended by itself just before.
    wait_until(lambda: own.load() == 0)
    wait_until(lambda: sum(own.metric(rf'^assay_inference_requests_total{{.*outcome="{outcome}"')
                           for outcome in ("success", "cancelled")) == outcomes["OK"] + outcomes["CANCELLED (ours)"])
    refused = sum(own.metric(rf'^assay_inference_requests_total{{.*outcome="{o}"') for o in ("error", "rejected"))
    assert refused == outcomes["INVALID_ARGUMENT"]
    assert own.metric(r'^assay_inference_requests_total{model="tiny_bert".*outcome="success"') == kinds["embed"]["requests"]
    chat = kinds["chat"]
    assert chat["tokens"] == 8 * chat["requests"]
    assert chat["e2e_ms"]["count"] == chat["ttft_ms"]["count"] == chat["requests"]
    assert report["server_metrics"]["before"]["resident_bytes"] > 0
    assert report["server_metrics"]["after"]["at_s"] >= report["seconds"]
    assert "closed phases hide stalls" in text


STALL = """
requests: [{name: embed, call: embed, model: tiny_bert, prompt_words: 4}]
phases: [{name: only, seconds: 4, arrivals: ARRIVALS}]
"""


def stalled(own, run, arrivals):
    """The report of four seconds, of which the server stands still for one."""
    before = own.requests("success", "tiny_bert")
    done = threading.Event()

    def stall():
        wait_until(lambda: own.requests("success", "tiny_bert") > before + 50)
        own.process.send_signal(signal.SIGSTOP)
        done.wait(STALL_SECONDS)  # the stall is what is tested, not a wait for something
        own.process.send_signal(signal.SIGCONT)

    thread = threading.Thread(target=stall)
    thread.start()
    try:
        code, report, _, errors = run(STALL.replace("ARRIVALS", arrivals), "--server", own.address)
    finally:
        thread.join()
    assert code in (0, 3), errors
    latency = report["totals"]["e2e_ms"]
    return latency, sum(count for end, count in latency["buckets"] if end >= 800)


def test_the_open_loop_sees_a_stall_that_the_closed_loop_hides(own, run):
    # 100 requests a second are meant to be sent whatever happens: of those meant for the first fifth of a second
    # of the stall, 20 of 400 in all, each waits 0.8 s or more. That is 5 %, so the 99th percentile is one of them.
    latency, waited = stalled(own, run, "{constant: 100}")
    assert latency["count"] == 400
    assert latency["p99"] >= 800 and waited >= 15
    # The closed loop's client stands still with the server: one request waited. Of 100 or more, that is above the
    # 99th percentile.
    latency, waited = stalled(own, run, "{closed: 1}")
    assert waited <= 1
    assert latency["count"] >= 100 and latency["p99"] < 800


def test_bad_usage_is_said(run, tmp_path):
    code, _, _, errors = run("requests: [{name: a, call: live}]\nphases: [{seconds: 1, arrivals: {poison: 1}}]\n")
    assert code == 1 and "scenario.yaml:2: arrivals: unknown key 'poison'" in errors
    sound = "requests: [{name: a, call: live}]\nphases: [{seconds: 0.1, arrivals: {poisson: 1}}]\n"
    code, _, _, errors = run(sound, "--server", "127.0.0.1:1")
    assert code == 2 and "no server answers at 127.0.0.1:1" in errors
    assert run(sound, "--metrics", "nowhere")[0] == 1
    assert run(sound, "--model", "a=b")[0] == 1
    for scale in ("0", "nan", "inf", "-1", "1e5", "two"):
        code, _, _, errors = run(sound, "--scale", scale)
        assert code == 1 and f"'{scale}' is not a number from 0.0001 to 10000" in errors
    for number in ("nan", ".nan", ".inf", "-1"):
        code, _, _, errors = run(sound.replace("poisson: 1", f"poisson: {number}"))
        assert code == 1 and f"found '{number}'" in errors


def test_compare_sets_two_reports_side_by_side(server, run, tmp_path):
    sound = "requests: [{name: a, call: live}]\nphases: [{seconds: 0.5, arrivals: {constant: 40}}]\n"
    code, report, _, errors = run(sound, "--server", server.address)
    assert code in (0, 3), errors
    assert report["totals"]["outcomes"] == {"OK": 20}
    path = tmp_path / "out" / "report.json"
    done = subprocess.run([PROGRAM, "compare", path, path, "--html", tmp_path / "c.html"], capture_output=True, text=True)
    assert done.returncode == 0 and "| e2e_ms p99 |" in done.stdout and "| 1.000 | 20 | 20 |" in done.stdout
    assert "<svg" in (tmp_path / "c.html").read_text()
    done = subprocess.run([PROGRAM, "compare", path, tmp_path / "c.html"], capture_output=True, text=True)
    assert done.returncode == 1 and "is no report of assay-load" in done.stderr
