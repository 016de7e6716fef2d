"""tritonclient, unmodified, against the real server: what Triton answers, or better."""

import queue

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from conftest import GOLDEN, wait_until

PROMPT, EXPECTED = next(iter(GOLDEN.items()))
MODEL = "stories260k"


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.address) as made:
        yield made


def text_input(*texts, shape=None):
    tensor = triton.InferInput("text_input", shape or [len(texts), 1], "BYTES")
    tensor.set_data_from_numpy(np.array([t.encode() for t in texts], dtype=object).reshape(shape or [len(texts), 1]))
    return tensor


def generate(client, prompt=PROMPT, **parameters):
    result = client.infer(MODEL, [text_input(prompt)], parameters=parameters, request_id="7")
    return result.as_numpy("text_output").reshape(-1)[0].decode(), result.get_response()


def expect(code, text, call):
    with pytest.raises(InferenceServerException) as caught:
        call()
    assert str(code) in caught.value.status(), caught.value
    assert text in caught.value.message(), caught.value


def test_health(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1") and not client.is_model_ready(MODEL, "9")
    assert not client.is_model_ready("nobody")


def test_server_metadata(client):
    metadata = client.get_server_metadata()
    assert metadata.name == "assay" and "statistics" in metadata.extensions
    assert not any("shared_memory" in e for e in metadata.extensions)


def test_model_metadata_and_config(client):
    metadata = client.get_model_metadata(MODEL)
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("text_input", "BYTES", [-1, 1])]
    config = client.get_model_config(MODEL).config
    assert config.name == MODEL and config.model_transaction_policy.decoupled and config.max_batch_size > 1
    assert config.parameters["assay.verdict"].string_value == "admitted"
    expect(grpc.StatusCode.NOT_FOUND, "unknown model", lambda: client.get_model_metadata("nobody"))


def test_infer_repeats_itself_and_echoes_the_id(client):
    text, response = generate(client, max_tokens=16)
    assert text and response.id == "7" and response.parameters["generated_tokens"].int64_param == 16
    assert generate(client, max_tokens=16)[0] == text


def test_infer_batch_of_texts(client):
    result = client.infer(MODEL, [text_input(PROMPT, "The sun was warm and")], parameters={"max_tokens": 8})
    assert result.as_numpy("text_output").shape == (2, 1)
    alone = client.infer(MODEL, [text_input(PROMPT)], parameters={"max_tokens": 8})
    assert result.as_numpy("text_output")[0, 0] == alone.as_numpy("text_output")[0, 0]


def test_statistics_grow(client):
    def count():
        return client.get_inference_statistics(MODEL).model_stats[0].inference_stats.success.count

    before = count()
    generate(client, max_tokens=2)
    assert count() == before + 1
    stats = client.get_inference_statistics().model_stats
    assert {s.name for s in stats} >= {MODEL}


def test_async_infer(client):
    answers = queue.Queue()
    for i in range(8):
        client.async_infer(MODEL, [text_input(PROMPT)], callback=lambda result, error: answers.put((result, error)),
                           parameters={"max_tokens": 4}, request_id=str(i))
    got = [answers.get(timeout=60) for _ in range(8)]
    assert all(error is None for _, error in got)
    assert {r.get_response().id for r, _ in got} == {str(i) for i in range(8)}


# 128 rows of 450 tokens, 64 at once: seconds of work, and nothing ends before 450 steps of 64 rows.
LONG = dict(parameters={"max_tokens": 450, "ignore_eos": True})


def test_async_infer_cancel(client, server):
    answers = queue.Queue()
    before = server.requests("cancelled")
    call = client.async_infer(MODEL, [text_input(*["Once"] * 128)],
                              callback=lambda result, error: answers.put(error), **LONG)
    wait_until(lambda: server.load() == 128)
    call.cancel()
    assert "CANCELLED" in str(answers.get(timeout=60).status())
    wait_until(lambda: server.load() == 0)
    assert server.requests("cancelled") == before + 1


def stream(client, requests):
    """All answers to some requests on one stream, until each has had its final mark."""
    answers = queue.Queue()
    client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for kwargs in requests:
        client.async_stream_infer(**kwargs)
    texts, errors, finals = {}, [], 0
    while finals + len(errors) < len(requests):
        result, error = answers.get(timeout=60)
        if error is not None:
            errors.append(error)
            continue
        response = result.get_response()
        output = result.as_numpy("text_output")
        if output is not None:
            texts[response.id] = texts.get(response.id, "") + output.reshape(-1)[0].decode()
        finals += response.parameters["triton_final_response"].bool_param
    client.stop_stream()
    return texts, errors


def test_stream_infer_gives_the_same_text_in_pieces(client):
    whole, _ = generate(client, max_tokens=24)
    texts, errors = stream(client, [dict(model_name=MODEL, inputs=[text_input(PROMPT)], request_id=str(i),
                                         parameters={"max_tokens": 24}) for i in range(3)])
    assert not errors and texts == {str(i): whole for i in range(3)}


def test_stream_infer_with_an_empty_final_response(client):
    texts, errors = stream(client, [dict(model_name=MODEL, inputs=[text_input(PROMPT)], request_id="a",
                                         enable_empty_final_response=True, parameters={"max_tokens": 4})])
    assert not errors and texts["a"]


def test_stream_errors_are_in_band_and_the_stream_goes_on(client):
    texts, errors = stream(client, [dict(model_name="nobody", inputs=[text_input("a")], request_id="bad"),
                                    dict(model_name=MODEL, inputs=[text_input(PROMPT)], request_id="good",
                                         parameters={"max_tokens": 2})])
    assert len(errors) == 1 and "unknown model" in errors[0].message() and texts["good"]


def test_stream_cancel_frees_the_requests(client, server):
    before = server.requests("cancelled")
    client.start_stream(callback=lambda result, error: None)
    for i in range(3):
        client.async_stream_infer(MODEL, [text_input(*["Once"] * 64)], request_id=str(i), **LONG)
    wait_until(lambda: server.load() == 3 * 64)
    client.stop_stream(cancel_requests=True)
    wait_until(lambda: server.load() == 0)
    assert server.requests("cancelled") == before + 3


def test_bad_requests(client):
    infer = client.infer
    code = grpc.StatusCode
    expect(code.NOT_FOUND, "unknown model: 'nobody'", lambda: infer("nobody", [text_input("a")]))
    expect(code.NOT_FOUND, "is not found", lambda: infer(MODEL, [text_input("a")], model_version="9"))
    expect(code.INVALID_ARGUMENT, "unexpected shape", lambda: infer(MODEL, [text_input("a", shape=[1, 1, 1])]))
    expect(code.INVALID_ARGUMENT, "unknown parameter 'temprature'",
           lambda: infer(MODEL, [text_input("a")], parameters={"temprature": 1}))
    expect(code.INVALID_ARGUMENT, "context", lambda: infer(MODEL, [text_input("a")], parameters={"max_tokens": 10**6}))
    expect(code.INVALID_ARGUMENT, "a text of 524288 bytes cannot fit the context of 512 tokens",
           lambda: infer(MODEL, [text_input(" " * (1 << 19))]))
    wrong = triton.InferInput("text_input", [1], "FP32")
    wrong.set_data_from_numpy(np.zeros(1, np.float32))
    expect(code.INVALID_ARGUMENT, "expected datatype BYTES", lambda: infer(MODEL, [wrong]))
    other = triton.InferInput("prompt", [1], "FP32")
    other.set_data_from_numpy(np.zeros(1, np.float32))
    expect(code.INVALID_ARGUMENT, "unexpected inference input 'prompt'", lambda: infer(MODEL, [other]))
    expect(code.INVALID_ARGUMENT, "unexpected inference output 'nonsense'",
           lambda: infer(MODEL, [text_input("a")], outputs=[triton.InferRequestedOutput("nonsense")]))


def test_an_oversize_message_is_refused_and_the_connection_lives(client):
    expect(grpc.StatusCode.RESOURCE_EXHAUSTED, "larger than max",
           lambda: client.infer(MODEL, [text_input("a" * (2 << 20))]))
    assert client.is_server_live()


def test_a_deadline_in_the_past_costs_nothing(client):
    expect(grpc.StatusCode.DEADLINE_EXCEEDED, "", lambda: client.infer(
        MODEL, [text_input("Once")], parameters={"max_tokens": 450, "ignore_eos": True}, client_timeout=0.005))


def test_shared_memory_is_unimplemented(client):
    expect(grpc.StatusCode.UNIMPLEMENTED, "shared memory", client.get_system_shared_memory_status)
    expect(grpc.StatusCode.UNIMPLEMENTED, "shared memory",
           lambda: client.register_system_shared_memory("r", "/r", 16))


def test_settings_are_readable(client):
    assert client.get_log_settings(as_json=True)["settings"]["log_error"]["bool_param"]
    assert client.get_trace_settings(as_json=True)["settings"]["trace_level"]["value"] == ["OFF"]


def test_index_unload_load(own_server):
    with triton.InferenceServerClient(own_server().address) as client:
        def states():
            return {m.name: (m.state, m.reason) for m in client.get_model_repository_index().models}

        assert states()[MODEL][0] == "READY"
        client.unload_model(MODEL)
        assert states()[MODEL] == ("UNAVAILABLE", "unloaded") and not client.is_model_ready(MODEL)
        expect(grpc.StatusCode.UNAVAILABLE, "", lambda: generate(client))
        client.load_model(MODEL)
        client.load_model(MODEL)  # what serves already is loaded
        assert client.is_model_ready(MODEL) and generate(client, max_tokens=4)[0]
        expect(grpc.StatusCode.NOT_FOUND, "no such model in the repository", lambda: client.load_model("nobody"))
        expect(grpc.StatusCode.NOT_FOUND, "", lambda: client.unload_model("nobody"))
        expect(grpc.StatusCode.UNIMPLEMENTED, "'config'", lambda: client.load_model(MODEL, config="{}"))
