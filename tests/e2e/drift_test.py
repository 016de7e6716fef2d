"""Accuracy on live traffic, with the real server: healthy traffic stays OK; memory that goes bad is found, said and mended."""

import json
import signal
import subprocess

import pytest

from conftest import BUILD, GOLDEN, Assay, clean_environment, wait_until

PROMPT, EXPECTED = next(iter(GOLDEN.items()))
WATCHED = ("--drift-rate", "1", "--drift-cpu-share", "1", "--drift-tokens-per-second", "1e9")


def ask(assay, number):
    """One short request; fails the test when it fails. The version that answered."""
    last = None
    for last in assay.generate(f"{PROMPT} {number}", max_tokens=12, temperature=1.0, seed=number, ignore_eos=True):
        pass
    assert last.done
    return last.version


def drift(assay):
    return {m.model: m for m in assay.call("GetDrift", assay.message("GetDriftRequest")).models}


def settle(assay, number):
    """Comparing runs at idle priority: on a busy machine the ring would fill. Every 20 requests, until it has caught up."""
    if number % 20 == 19:
        wait_until(lambda: drift(assay)["stories260k"].waiting == 0, 120)


def events(assay):
    return [(e.kind, e.reason) for e in assay.call("ListEvents", assay.message("ListEventsRequest", model="stories260k")).events]


def test_memory_that_goes_bad_is_found_and_mended_without_a_failed_request(spoilable):
    server = spoilable(*WATCHED, "--drift-action", "refresh")
    assay = Assay(server.address)
    for number in range(200):
        assert ask(assay, number) == 1
        settle(assay, number)
    healthy = drift(assay)["stories260k"]
    assert healthy.state == "OK" and healthy.samples >= 180 and healthy.skipped == 0, healthy
    assert healthy.replay_difference < 1e-4 and 0 < healthy.score < healthy.limit

    server.process.send_signal(signal.SIGUSR1)
    for number in range(200, 2000):
        if ask(assay, number) == 2:
            break
        settle(assay, number)
    else:
        pytest.fail(f"not found: {drift(assay)} {events(assay)}")
    history = events(assay)
    reasons = [reason for kind, reason in history]
    assert any(kind == "drift" and "VIOLATED after" in reason for kind, reason in history), history
    assert "refresh: admitting the checkpoint again" in reasons, history
    wait_until(lambda: "refresh done: version 2 serves" in [reason for _, reason in events(assay)])
    # The new version is sound, and starts with a clean slate.
    text = "".join(piece.text for piece in assay.generate(PROMPT, max_tokens=64, ignore_eos=True))
    assert text
    again = drift(assay)["stories260k"]
    assert again.version == 2 and again.state == "OK"
    assert server.requests("error") == 0
    # What was done outlives the version that it was done to, and was there before, at 0.
    assert server.metric(r'^assay_drift_actions_total{action="refresh",model="stories260k"') == 1
    assert server.metric(r'^assay_drift_actions_total{action="roll_back",model="stories260k"') == 0


def test_alert_is_all_that_happens_when_that_is_configured(spoilable):
    server = spoilable(*WATCHED, "--drift-action", "alert")
    assay = Assay(server.address)
    server.process.send_signal(signal.SIGUSR1)
    for number in range(400):
        assert ask(assay, number) == 1
        if number % 20 == 0 and drift(assay)["stories260k"].state == "VIOLATED":
            break
    wait_until(lambda: drift(assay)["stories260k"].state == "VIOLATED")
    wait_until(lambda: server.metric(r'^assay_drift_actions_total{action="alert",model="stories260k"') == 1)
    assert server.metric(r'^assay_drift_state{model="stories260k",state="violated"') == 1
    table = subprocess.run([BUILD / "cli" / "assay", "drift", "--server", server.address], capture_output=True, text=True,
                           env=clean_environment(), check=True).stdout
    assert "VIOLATED" in table and "when VIOLATED: alert" in table
    listed = subprocess.run([BUILD / "cli" / "assay", "events", "--json", "--server", server.address], capture_output=True,
                            text=True, env=clean_environment(), check=True).stdout
    kinds = [json.loads(line)["kind"] for line in listed.splitlines()]
    assert {"state", "drift", "action"} <= set(kinds)


def test_commands_name_what_is_wrong(server):
    errors = set()
    for command in ("drift", "events"):
        unknown = subprocess.run([BUILD / "cli" / "assay", command, "nobody", "--server", server.address], capture_output=True,
                                 text=True, env=clean_environment())
        assert unknown.returncode == 1 and "nobody" in unknown.stderr and not unknown.stdout
        errors.add(unknown.stderr)
    assert len(errors) == 1
    bad = subprocess.run([BUILD / "server" / "assay-server", "--drift-rate", "1.5"], capture_output=True, text=True,
                         env=clean_environment())
    assert bad.returncode == 1 and "1.5" in bad.stderr and "0 to 1" in bad.stderr
