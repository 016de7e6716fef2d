"""What scrapers get from the real server: both formats, read by the parsers of the official Python client, and exemplars."""

import re
import urllib.request

import grpc
import pytest
from conftest import ROOT, Assay, wait_until
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

OPEN_METRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = "00f067aa0ba902b7"


@pytest.fixture
def assay(server):
    return Assay(server.address)


def scrape(server, accept):
    request = urllib.request.Request(f"http://127.0.0.1:{server.http_port()}/metrics", headers={"Accept": accept} if accept else {})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def generate(assay, *metadata, model="stories260k"):
    return list(assay.generate("Once", model=model, metadata=metadata, max_tokens=3))


def exemplars(server):
    """{metric: trace ids} of stories260k's buckets."""
    found = {}
    for family in parse_open_metrics(scrape(server, OPEN_METRICS)[1]):
        for sample in family.samples:
            if sample.exemplar:
                assert sample.labels["model"] == "stories260k" and sample.name.endswith("_bucket")
                assert float(sample.labels["le"]) >= sample.exemplar.value > 0
                found.setdefault(family.name, set()).add(sample.exemplar.labels["trace_id"])
    return found


def values(families):
    """{(sample, labels): value}, bounds as numbers; without what changes between two scrapes."""
    found = {}
    for family in families:
        for sample in family.samples:
            if not re.match("process_|assay_device_", sample.name):
                labels = {k: float(v) if k == "le" else v for k, v in sample.labels.items()}
                found[sample.name, tuple(sorted(labels.items()))] = sample.value
    return found


def test_both_formats_say_the_same(server, assay):
    generate(assay)
    assay.call("Embed", assay.message("EmbedRequest", model="tiny_bert", texts=["a"]))
    text_type, text = scrape(server, None)
    open_type, open_metrics = scrape(server, OPEN_METRICS)
    assert text_type == "text/plain; version=0.0.4; charset=utf-8"
    assert open_type == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert open_metrics.endswith("\n# EOF\n") and "# EOF" not in text
    as_text, as_open_metrics = values(parse_text(text)), values(parse_open_metrics(open_metrics))
    for both in (as_text, as_open_metrics):  # the scrape's own connection, and perhaps still the one before it
        assert both.pop(("assay_http_connections", ())) in (1, 2)
    assert as_text == pytest.approx(as_open_metrics, rel=1e-15)  # the text has 16 digits
    assert as_text["assay_llm_generated_tokens_total", (("model", "stories260k"), ("version", "1"))] >= 3


def test_families_are_named_once_and_units_are_right(server):
    families = list(parse_open_metrics(scrape(server, OPEN_METRICS)[1]))
    names = [family.name for family in families]
    assert len(set(names)) == len(names) > 60
    units = {family.name: family.unit for family in families}
    assert units["assay_inference_queue_duration_seconds"] == units["process_cpu_seconds"] == "seconds"
    assert units["assay_model_memory_bytes"] == "bytes" and units["assay_model_ready"] == ""
    assert all(family.documentation for family in families)


def test_a_sampled_trace_is_the_exemplar_of_its_buckets(server, assay):
    generate(assay, ("traceparent", f"00-{TRACE}-{SPAN}-01"))
    found = exemplars(server)
    for name in ("assay_inference_request_duration_seconds", "assay_llm_time_to_first_token_seconds"):
        assert TRACE in found[name]


@pytest.mark.parametrize("header", ["", "00", f"00-{'e' * 31}-{SPAN}-01", f"00-{'E' * 32}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
                                    f"00-{'e' * 32}-{'0' * 16}-01", f"ff-{'e' * 32}-{SPAN}-01", f"00-{'e' * 32}-{SPAN}-00",
                                    f"00-{'e' * 32}-{SPAN}-01-more", '"} 1\\nevil{x="', "e" * 4000])
def test_another_header_changes_nothing(server, assay, header):
    answer = generate(assay, ("traceparent", header))
    assert answer[-1].done
    assert not {trace for traces in exemplars(server).values() for trace in traces if trace.lower() in ("e" * 32, "0" * 32)}
    assert "evil" not in scrape(server, OPEN_METRICS)[1]


def test_a_failed_request_keeps_its_trace_out_of_other_models(server, assay):
    with pytest.raises(grpc.RpcError):
        generate(assay, ("traceparent", f"00-{'c' * 32}-{SPAN}-01"), model="nobody")
    assert "c" * 32 not in scrape(server, OPEN_METRICS)[1]


def test_methods_that_no_service_has_are_one(server, assay):
    def call(path):
        with pytest.raises(grpc.RpcError) as caught:
            assay.channel.unary_unary(path)(b"")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED

    call("/assay.v1.AssayService/my_secret_prompt")
    before = len(values(parse_text(scrape(server, None)[1])))
    for i in range(300):
        call(f"/assay.v1.AssayService/my_secret_prompt_{i}" if i % 2 else f"/my_secret_service_{i}/Generate")
    text = scrape(server, None)[1]
    assert len(values(parse_text(text))) == before
    assert "my_secret" not in text
    labels = (("grpc_method", "_unknown"), ("grpc_service", "_unknown"), ("grpc_type", "_unknown"))
    assert values(parse_text(text))["grpc_server_started_total", labels] >= 301
    reflection = {sample.labels["grpc_type"] for family in parse_text(text) for sample in family.samples
                  if sample.labels.get("grpc_method") == "ServerReflectionInfo"}
    assert reflection == {"bidi_stream"}  # a method of a service that is not ours


def test_a_version_that_drains_is_not_ready(own_server):
    server = own_server("--engine-max-sequences", "1", "--engine-max-queue", "64", "--versions-rollback-window", "0")
    assay = Assay(server.address)
    streams = [assay.generate("Once", max_tokens=400, ignore_eos=True) for _ in range(60)]  # one after the other: seconds
    wait_until(lambda: server.load() > 20)
    path = ROOT / "data" / "stories260k" / "stories260K-f32.gguf"
    stages = list(assay.call("Admit", assay.message("AdmitRequest", name="stories260k", path=str(path))))
    assert stages[-1].verdict == "admitted"
    assert server.metric('^assay_model_state{model="stories260k",state="draining",version="1"}') == 1
    assert server.metric('^assay_model_state{model="stories260k",state="serving",version="1"}') == 0
    assert server.metric('^assay_model_ready{model="stories260k",version="1"}') == 0
    assert server.metric('^assay_model_ready{model="stories260k",version="2"}') == 1
    for stream in streams:
        assert list(stream)[-1].done


def test_the_parser_would_find_fault(server):
    text = scrape(server, OPEN_METRICS)[1]
    for broken in (text.removesuffix("# EOF\n"), text.replace("requests_total{", "requests{", 1), text.replace('le="1.0"', 'le="x"', 1)):
        with pytest.raises(ValueError):
            list(parse_open_metrics(broken))
