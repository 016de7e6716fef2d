"""Versions side by side, with the real server: a canary's share, promotion, rollback and drift, and no request that fails."""

import signal
import subprocess
import threading

import grpc
import pytest

from conftest import BUILD, GOLDEN, STORIES, Assay, clean_environment, wait_until

MODEL = "stories260k"
PROMPT = next(iter(GOLDEN))
WATCHED = ("--drift-rate", "1", "--drift-cpu-share", "1", "--drift-tokens-per-second", "1e9")
MIN_SAMPLES = 20


def canary_turns(count, share):
    """Which of so many requests since the canary came are its own: frac(n * golden ratio) < share, in 64 bits."""
    position, turns = 0, []
    for _ in range(count):
        position = (position + 0x9E3779B97F4A7C15) % 2**64
        turns.append((position >> 11) / 2**53 < share)
    return turns


def ask(assay, number=0, **fields):
    """One short request; raises when it fails. The version that answered."""
    request = assay.message("GenerateRequest", model=MODEL, prompt=f"{PROMPT} {number}", **fields,
                            sampling=assay.message("SamplingParams", max_tokens=8, temperature=1.0, seed=number, ignore_eos=True))
    last = None
    for last in assay.call("Generate", request):
        pass
    assert last.done
    return last.version


def admit(assay, **fields):
    last = None
    for last in assay.call("Admit", assay.message("AdmitRequest", name=MODEL, path=str(STORIES), **fields), timeout=240):
        pass
    assert last.done and last.verdict == "admitted"
    return last.version


def move(assay, method, **fields):
    """(stable, canary, share, previous) after one of the RPCs that move labels."""
    labels = assay.call(method, assay.message(method + "Request", model=MODEL, **fields))
    return labels.stable, labels.canary, labels.canary_share, labels.previous


def labels(assay):
    """Label -> version of what serves."""
    models = assay.call("ListModels", assay.message("ListModelsRequest")).models
    return {m.label: m.version for m in models if m.name == MODEL and m.label}


def drift(assay):
    return {m.version: m for m in assay.call("GetDrift", assay.message("GetDriftRequest", model=MODEL)).models}


def actions(assay):
    events = assay.call("ListEvents", assay.message("ListEventsRequest", model=MODEL)).events
    return [e.reason for e in events if e.kind == "action"]


def ask_until(assay, condition, most=3000):
    """Requests until `condition()`; comparing runs at idle priority, so it gets to catch up."""
    for number in range(most):
        ask(assay, number)
        if number % 10 == 9:
            wait_until(lambda: all(m.waiting == 0 for m in drift(assay).values()), 120)
            if condition():
                return
    pytest.fail(f"not within {most} requests: {drift(assay)} {actions(assay)}")


class Background:
    """Unversioned requests on two threads, one after the other, while the test moves labels."""

    def __init__(self, address):
        self.versions, self.failures = [], []
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(address,)) for _ in range(2)]

    def _run(self, address):
        assay = Assay(address)
        while not self._stop.is_set():
            try:
                self.versions.append(ask(assay))
            except Exception as error:  # whatever it is, it is a failed request
                self.failures.append(str(error))

    def answered(self, count):
        """Waits for so many more answers."""
        target = len(self.versions) + count
        wait_until(lambda: len(self.versions) >= target or self.failures, 120)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_canary_gets_its_share_is_promoted_and_rolled_back(spoilable):
    server = spoilable(*WATCHED, "--versions-promote-min-samples", str(MIN_SAMPLES))
    assay = Assay(server.address)
    assert ask(assay) == 1
    assert admit(assay, canary_share=0.25) == 2
    with pytest.raises(grpc.RpcError) as refused:
        move(assay, "Promote")
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert "compared=0 expected=20" in refused.value.details()

    turns = canary_turns(200, 0.25)
    assert 49 <= sum(turns) <= 51  # a quarter
    assert [ask(assay, n) for n in range(200)] == [2 if turn else 1 for turn in turns]
    assert {ask(assay, n, version_label="canary") for n in range(3)} == {2}
    assert {ask(assay, n, version_label="stable") for n in range(3)} == {1}
    assert {ask(assay, n, version=2) for n in range(3)} == {2}
    assert server.metric(rf'^assay_model_traffic_share_ratio{{model="{MODEL}",version="1"}}') == 0.75
    assert server.metric(rf'^assay_model_traffic_share_ratio{{model="{MODEL}",version="2"}}') == 0.25

    wait_until(lambda: drift(assay)[2].samples >= MIN_SAMPLES, 120)
    assert move(assay, "Promote") == (2, 0, 0, 1)
    assert {ask(assay, n) for n in range(10)} == {2}
    assert move(assay, "RollBack") == (1, 0, 0, 2)
    assert {ask(assay, n) for n in range(10)} == {1}
    assert move(assay, "RollBack") == (2, 0, 0, 1)  # undone
    assert {ask(assay, n) for n in range(10)} == {2}
    assert {ask(assay, version_label="previous")} == {1}
    said = actions(assay)
    assert [reason.split(":")[0] for reason in said] == ["publish", "canary", "promote", "roll_back", "roll_back"], said
    assert "drift OK" in said[2] and "version 1 is kept for a rollback until" in said[2]
    assert server.requests("error") == server.requests("rejected") == 0


def test_no_request_fails_while_labels_move(spoilable):
    server = spoilable("--versions-rollback-window", "1h")
    assay = Assay(server.address)
    with Background(server.address) as traffic:
        admit(assay, canary_share=0.5)
        traffic.answered(10)
        move(assay, "SetCanaryShare", share=1)
        traffic.answered(10)
        move(assay, "DropCanary")
        wait_until(lambda: labels(assay) == {"stable": 1})
        traffic.answered(10)
        admit(assay, canary_share=0.5)
        admit(assay, canary_share=0.5)  # in place of the one before
        traffic.answered(10)
        move(assay, "Promote", force=True)
        traffic.answered(10)
        move(assay, "RollBack")
        traffic.answered(10)
        admit(assay)  # stable; the earlier previous version drains at once
        traffic.answered(10)
    assert traffic.failures == []
    assert set(traffic.versions) >= {1, 2, 4, 5}
    assert labels(assay) == {"stable": 5, "previous": 1}
    assert server.requests("error") == server.requests("rejected") == 0
    for action, count in {"publish": 2, "canary": 4, "promote": 1, "roll_back": 1, "drop": 1}.items():
        assert server.metric(rf'^assay_model_version_changes_total{{action="{action}"}}') == count, action


def test_a_canary_that_drifts_is_dropped_whatever_the_action(spoilable):
    server = spoilable(*WATCHED, "--drift-action", "alert")
    assay = Assay(server.address)
    admit(assay, canary_share=0.5)
    server.process.send_signal(signal.SIGUSR2)
    ask_until(assay, lambda: "canary" not in labels(assay))
    dropped = [reason for reason in actions(assay) if reason.startswith("drop: ")]
    assert len(dropped) == 1 and "its drift is VIOLATED" in dropped[0], actions(assay)
    assert {ask(assay, n) for n in range(10)} == {1}
    assert drift(assay)[1].state == "OK"
    with pytest.raises(grpc.RpcError) as gone:
        ask(assay, version_label="canary")
    assert gone.value.code() == grpc.StatusCode.NOT_FOUND and "canary" in gone.value.details()
    assert server.requests("error") == 0


def test_drift_of_the_stable_version_rolls_back_at_once_to_the_one_that_is_loaded(spoilable):
    server = spoilable(*WATCHED, "--drift-action", "roll_back")
    assay = Assay(server.address)
    assert admit(assay) == 2
    assert labels(assay) == {"stable": 2, "previous": 1}
    server.process.send_signal(signal.SIGUSR2)
    ask_until(assay, lambda: labels(assay).get("stable") == 1)
    assert labels(assay) == {"stable": 1, "previous": 2}  # and nothing was admitted
    assert actions(assay)[-1].startswith("roll_back: stable again, in place of version 2: drift is VIOLATED")
    assert {ask(assay, n) for n in range(10)} == {1}
    assert server.requests("error") == 0


def test_auto_promote_waits_for_the_conditions(spoilable):
    server = spoilable(*WATCHED, "--versions-auto-promote", "true", "--versions-promote-min-samples", str(MIN_SAMPLES))
    assay = Assay(server.address)
    admit(assay, canary_share=0.5)
    ask_until(assay, lambda: labels(assay) == {"stable": 2, "previous": 1})
    promoted = [reason for reason in actions(assay) if reason.startswith("promote: ")]
    assert len(promoted) == 1 and f"after {MIN_SAMPLES} requests" in promoted[0], promoted
    assert server.requests("error") == 0


def test_the_window_ends_by_itself(spoilable):
    server = spoilable("--versions-rollback-window", "300ms")
    assay = Assay(server.address)
    admit(assay)
    wait_until(lambda: labels(assay) == {"stable": 2})
    with pytest.raises(grpc.RpcError) as refused:
        move(assay, "RollBack")
    assert refused.value.code() == grpc.StatusCode.FAILED_PRECONDITION and "previous" in refused.value.details()


def test_commands(spoilable):
    server = spoilable("--drift-rate", "0")

    def run(*arguments):
        done = subprocess.run([BUILD / "cli" / "assay", "--server", server.address, *map(str, arguments)], text=True,
                              capture_output=True, timeout=240, env=clean_environment())
        return done.returncode, done.stdout, done.stderr

    code, _, error = run("admit", STORIES, "--name", "nobody", "--canary", "10%")
    assert code == 1 and "none serves" in error and "nobody" in error
    for bad in ("130%", "1.5", "-0.1", "much", "10"):
        for command in (("canary", MODEL, bad), ("admit", STORIES, "--name", MODEL, f"--canary={bad}")):
            if bad == "-0.1" and command[0] == "canary":
                continue  # an option to the parser
            code, _, error = run(*command)
            assert code == 1 and f"'{bad}' is not a share" in error, (command, error)
    for command in (("canary", MODEL, "10%"), ("canary", MODEL, "--drop"), ("promote", MODEL)):
        code, _, error = run(*command)
        assert code == 1 and f"model '{MODEL}' has no canary version" in error, error
    code, _, error = run("rollback", MODEL)
    assert code == 1 and f"model '{MODEL}' has no previous version" in error
    code, _, error = run("promote", "nobody")
    assert code == 1 and "model=nobody" in error

    assert run("admit", STORIES, "--name", MODEL, "--canary", "10%")[0] == 0
    assert run("canary", MODEL, "25%") == (0, f"{MODEL}: version 1 stable, version 2 canary (25 %)\n", "")
    assert "canary 25%" in run("status")[1]
    code, _, error = run("promote", MODEL)
    assert code == 1 and "drift.rate is 0" in error
    code, out, _ = run("promote", MODEL, "--force")
    assert code == 0 and out.startswith(f"{MODEL}: version 2 stable, version 1 kept for a rollback until ")
    code, out, _ = run("rollback", MODEL)
    assert code == 0 and out.startswith(f"{MODEL}: version 1 stable, version 2 kept")
    events = run("events", MODEL)[1]
    assert "forced, although not promoted: drift.rate is 0" in events and "asked for by RPC" in events
    assert run("admit", STORIES, "--name", MODEL, "--canary", "0.1")[0] == 0
    assert run("canary", MODEL, "--drop")[0] == 0
