"""More load than the server can serve: what it takes is answered in time, the rest is told at once when to come again."""

import collections
import threading

import grpc
import pytest
from conftest import Assay

PROMPT = "Once upon a time"
CLIENTS, ROUNDS, TOKENS = 40, 3, 200
BOUND = 0.3  # seconds in the queue
# Two at once: forty clients' answers of 200 tokens are many times the bound's worth of work.
FLAGS = ("--engine-max-sequences", "2", "--engine-max-queue-wait")

Answer = collections.namedtuple("Answer", "code text queued details pushback")


def ask(assay):
    call = assay.generate(PROMPT, max_tokens=TOKENS, ignore_eos=True)
    try:
        parts = list(call)
    except grpc.RpcError as error:
        pushback = dict(error.trailing_metadata()).get("grpc-retry-pushback-ms")
        return Answer(error.code(), "", None, error.details(), pushback)
    return Answer(grpc.StatusCode.OK, "".join(part.text for part in parts), parts[-1].usage.queued_seconds, "", None)


def overload(assay):
    answers = []

    def client():
        for _ in range(ROUNDS):
            answers.append(ask(assay))

    threads = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == CLIENTS * ROUNDS
    return answers


@pytest.mark.parametrize("bounded", [True, False])
def test_what_is_taken_waits_no_longer_than_the_bound(own_server, bounded):
    server = own_server(*FLAGS, f"{BOUND}s" if bounded else "0")
    assay = Assay(server.address)
    expected = ask(assay).text
    assert expected
    answers = overload(assay)
    served = [answer for answer in answers if answer.code == grpc.StatusCode.OK]
    refused = [answer for answer in answers if answer.code != grpc.StatusCode.OK]
    assert {answer.text for answer in served} == {expected}, "a wrong answer under load"
    if not bounded:  # the same load without the bound: nobody is refused (256 places), and some wait longer
        assert not refused
        assert max(answer.queued for answer in served) > BOUND
        return
    # Who waits is looked at by the clock with which a step begins, so the bound is exact.
    assert max(answer.queued for answer in served) < BOUND
    assert refused and {answer.code for answer in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    for answer in refused:
        assert "max_queue_wait" in answer.details
        assert int(answer.pushback) >= 100
    assert server.requests("rejected") == len(refused)
    assert server.requests("success") == len(served) + 1
    assert server.metric(r'rejected_total{model="stories260k",reason="queue_full"') == len(refused)
    after = ask(assay)
    assert after.code == grpc.StatusCode.OK and after.text == expected
