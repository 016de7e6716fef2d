"""The binaries as a user meets them: banner, health, metrics, draining, the command line."""

import json
import re
import subprocess
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from conftest import BUILD, GOLDEN, ROOT, Assay, clean_environment, wait_until

MODEL = "stories260k"
PROMPT, EXPECTED = next(iter(GOLDEN.items()))


@pytest.fixture(scope="module")
def assay(server):
    return Assay(server.address)


def test_the_banner_says_what_was_found_and_done(server):
    log = server.log()
    for part in ("hardware", "policy", "rule '", f"{MODEL}:1", "SERVING after", "MiB ->", "ready in", "assay generate"):
        assert part in log, log


def test_every_line_of_a_json_log_is_json(own_server):
    server = own_server("--log-format", "json")
    server.terminate()
    assert server.wait() == 0
    lines = [json.loads(line) for line in server.stderr]
    messages = [line["message"] for line in lines]
    for part in ("hardware", "SERVING after", "assay generate", "draining"):
        assert any(part in message for message in messages), messages
    assert all(line["time"].endswith("Z") and line["level"] in ("INFO", "WARNING") for line in lines)


def test_http_endpoints(server):
    assert server.get("/healthz") == (200, "ok\n")
    assert server.get("/readyz") == (200, "ready\n")
    assert server.get("/nothing")[0] == 404
    body = server.get("/metrics")[1]
    assert re.search(r'assay_build_info{[^}]*revision="([0-9a-f]{12}|unknown)"', body)
    for name in ("assay_build_info", "assay_model_info", "assay_admission_total", "process_resident_memory_bytes",
                 "grpc_server_started_total", "assay_llm_time_to_first_token_seconds_bucket"):
        assert f"\n# TYPE {name.removesuffix('_bucket')} " in "\n" + body, name


def test_unknown_models_add_no_series(server, assay):
    def series():
        return sum(1 for line in server.get("/metrics")[1].splitlines() if not line.startswith("#"))

    list_models = assay.message("ListModelsRequest")
    assay.call("ListModels", list_models)
    with pytest.raises(grpc.RpcError):
        list(assay.generate("a", model="nobody"))
    before = series()
    for i in range(200):
        with pytest.raises(grpc.RpcError):
            list(assay.generate("a", model=f"nobody-{i}"))
    assert series() <= before + 5


def test_health_service(server):
    stub = health_pb2_grpc.HealthStub(grpc.insecure_channel(server.address))
    for service in ("", "ready", MODEL):
        assert stub.Check(health_pb2.HealthCheckRequest(service=service)).status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services(assay):
    assert {"assay.v1.AssayService", "inference.GRPCInferenceService"} <= set(assay.database.get_services())


def test_generate_in_f32_repeats_the_golden_tokens(own_server):
    started = own_server()
    assay = Assay(started.address)
    path = ROOT / "data" / "stories260k" / "stories260K-f32.gguf"
    stages = list(assay.call("Admit", assay.message("AdmitRequest", name="exact", path=str(path), scheme="f32")))
    assert stages[-1].done and stages[-1].verdict == "admitted" and json.loads(stages[-1].report_json)
    for prompt, golden in GOLDEN.items():
        ids = [t.token for m in assay.generate(prompt, model="exact", max_tokens=len(golden["greedy_ids"]))
               for t in m.tokens]
        assert ids == golden["greedy_ids"][:len(ids)] and len(ids) >= 32


def test_generate_ends_with_usage(assay):
    messages = list(assay.generate(PROMPT, max_tokens=12))
    last = messages[-1]
    assert last.done and last.finish_reason == "length" and last.usage.generated_tokens == 12
    assert last.usage.prompt_tokens == len(EXPECTED["prompt_ids"])
    assert sum(len(m.tokens) for m in messages) == 12


def test_sixty_four_streams_give_what_one_gives(assay, server):
    alone = "".join(m.text for m in assay.generate(PROMPT, max_tokens=24))
    texts = [None] * 64

    def run(i):
        texts[i] = "".join(m.text for m in assay.generate(PROMPT, max_tokens=24))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(64)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert texts == [alone] * 64
    wait_until(lambda: server.metric(r"^assay_inference_running_requests\{model=\"stories") == 0)


def fill(assay, server, count=128):
    """Generations that keep the engine busy for seconds: twice as many as run at once."""
    calls = [assay.generate("Once", max_tokens=450, ignore_eos=True) for _ in range(count)]
    wait_until(lambda: server.load() == count)
    return calls


def test_cancelled_and_expired_generations_are_freed(assay, server):
    expiries = r'^assay_inference_deadline_exceeded_total{model="stories'
    cancelled, timeouts, expired = server.requests("cancelled"), server.requests("timeout"), server.metric(expiries)
    calls = fill(assay, server)
    with pytest.raises(grpc.RpcError) as caught:  # waits behind them
        list(assay.generate("Once", max_tokens=450, ignore_eos=True, timeout=0.1))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: server.requests("timeout") == timeouts + 1)
    assert server.metric(expiries) == expired + 1
    assert server.requests("cancelled") == cancelled
    for call in calls:
        call.cancel()
    wait_until(lambda: server.load() == 0)
    assert server.requests("cancelled") >= cancelled + 64  # those that waited cannot have ended


def test_health_turns_and_accepted_requests_finish_when_terminated(own_server):
    started = own_server()
    assay = Assay(started.address)
    stub = health_pb2_grpc.HealthStub(assay.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=MODEL))
    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    results, begun, refused = [], threading.Barrier(17), []

    def run():
        call = assay.generate(PROMPT, max_tokens=300, ignore_eos=True)
        tokens = len(next(call).tokens)
        begun.wait()
        for message in call:
            tokens += len(message.tokens)
        results.append((tokens, message.done))

    threads = [threading.Thread(target=run) for _ in range(16)]
    for t in threads:
        t.start()
    begun.wait()
    started.terminate()
    assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
    try:
        list(assay.generate("late", max_tokens=1))
    except grpc.RpcError as error:
        refused.append(error.code())
    for t in threads:
        t.join()
    assert started.wait() == 0, started.log()
    assert results == [(300, True)] * 16
    assert refused == [grpc.StatusCode.UNAVAILABLE]


def test_a_second_signal_ends_at_once(own_server):
    started = own_server("--drain-timeout", "600s")
    calls = fill(Assay(started.address), started)
    started.terminate()
    wait_until(lambda: "draining" in started.log())
    started.terminate()
    assert started.wait() == 1  # 0 would be: it has waited for the generations
    for call in calls:
        with pytest.raises(grpc.RpcError):
            list(call)


def run_server(*flags, env=None):
    done = subprocess.run([BUILD / "server" / "assay-server", *map(str, flags)], capture_output=True, text=True,
                          timeout=60, env={**clean_environment(), **(env or {})})
    return done.returncode, done.stdout, done.stderr


def test_check_config_prints_values_with_their_origin(tmp_path):
    file = tmp_path / "assay.yaml"
    file.write_text("threads: 3\n")
    code, out, _ = run_server("--check-config", "--config", file, "--grpc-port", "9", env={"ASSAY_HTTP_PORT": "8"})
    lines = {line.split(":")[0]: line for line in out.splitlines()}
    assert code == 0
    assert "3" in lines["threads"] and "assay.yaml:1" in lines["threads"]
    assert "--grpc-port" in lines["grpc_port"] and "ASSAY_HTTP_PORT" in lines["http_port"]


def test_a_bad_configuration_is_one_line_and_exit_code_1(tmp_path):
    file = tmp_path / "assay.yaml"
    file.write_text("\nthread: 3\n")
    code, out, err = run_server("--config", file)
    assert code == 1 and err.count("\n") == 1 and "assay.yaml:2: unknown key 'thread'" in err and "'threads'" in err
    code, _, err = run_server("--grpc-prot", "1")
    assert code == 1 and err.count("\n") == 1


def test_a_port_in_use_is_exit_code_2(server):
    code, _, err = run_server("--grpc-port", server.address.split(":")[1], "--http-port", "0", "--admin-port", "-1")
    assert code == 2 and "cannot listen for gRPC on" in err and "chttp2" not in err
    code, _, err = run_server("--http-port", server._port("HTTP"), "--grpc-port", "0", "--admin-port", "-1")
    assert code == 2 and "cannot listen for HTTP on" in err and "in use" in err
    code, _, err = run_server("--admin-port", server._port("HTTP"), "--grpc-port", "0", "--http-port", "0")
    assert code == 2 and "admin_port=" in err and "in use" in err


def test_cli_generate_streams_and_counts(cli):
    code, out, err = cli("generate", MODEL, PROMPT, "--max-tokens", "12", "--stats")
    assert code == 0 and out.strip() and "12 generated, length" in err
    code, again, _ = cli("generate", MODEL, "-", "--max-tokens", "12", "--json", input=PROMPT)
    assert code == 0 and json.loads(again)["text"].strip() == out.strip()


def test_cli_analyze(cli):
    checkpoint = ROOT / "data" / "stories260k" / "stories260K-f32.gguf"
    code, out, _ = cli("analyze", checkpoint, "--scheme", "int4_group:g32", "--activation", "a16", "--top", "3")
    assert code == 0 and out.count("\n  - model.") == 3 and "KURTOSIS" in out
    for wrong, named in (("--metric", "magic"), ("--scheme", "int9"), ("--activation", "a1"), ("--calibration", "/nowhere")):
        code, _, err = cli("analyze", checkpoint, wrong, named)
        assert code != 0 and named in err, err


def test_cli_verify_with_labelled_data(cli, tmp_path):
    checkpoint = ROOT / "data" / "stories260k" / "stories260K-f32.gguf"
    mine = tmp_path / "mine.jsonl"
    mine.write_text(json.dumps({"text": PROMPT, "references": ["completely unrelated words"]}) + "\n")
    code, out, _ = cli("verify", checkpoint, "--scheme", "f32", "--labelled", mine, "--json")
    tasks = json.loads(out)["tasks"]
    assert code == 0 and [t["metric"] for t in tasks] == ["bleu", "chrf"]
    assert all(t["reference"] == t["candidate"] for t in tasks)
    mine.write_text('{"text": "a"}')
    code, _, err = cli("verify", checkpoint, "--labelled", mine)
    assert code not in (0, 3) and "mine.jsonl:1" in err and "references" in err


def test_cli_plan(cli, tmp_path):
    checkpoint = ROOT / "data" / "stories260k" / "stories260K-f32.gguf"
    page = tmp_path / "plan.html"
    code, out, _ = cli("plan", checkpoint, "--budget-kl", "0.02", "--html", page)
    assert code == 0 and "Search:" in out and "chosen" in out and "plan 1" in page.read_text()
    code, out, err = cli("plan", checkpoint, "--budget-bytes", "1KB")
    assert code == 3 and "max_bytes=1000" in err
    code, out, err = cli("plan", checkpoint, "--budget-bytes", "0.001MiB")
    assert code == 3 and "max_bytes=1048" in err
    for wrong, named in (("--budget-bytes", "many"), ("--budget-bytes", "-1"), ("--budget-bytes", "0"), ("--budget-kl", "-1"),
                         ("--budget-kl", "nan"), ("--candidates", "int9")):
        code, _, err = cli("plan", checkpoint, f"{wrong}={named}")
        assert code not in (0, 3) and named in err, err
    code, _, err = cli("plan", checkpoint, "--recipe", "w8a16", "--budget-bytes", "200KB")
    assert code not in (0, 3) and "recipe=w8a16" in err


def test_cli_output_that_cannot_be_written_is_said_at_once(cli, tmp_path):
    checkpoint = ROOT / "data" / "stories260k" / "stories260K-f32.gguf"
    (tmp_path / "file").write_text("")
    code, out, err = cli("quantize", checkpoint, "--output", tmp_path / "file" / "below")
    assert code not in (0, 3) and out == "" and str(tmp_path / "file" / "below") in err


def test_cli_report_as_a_page(cli, tmp_path):
    page = tmp_path / "report.html"
    code, out, err = cli("report", MODEL, "--html", page)
    assert code == 0 and out == "" and f"wrote {page}" in err
    text = page.read_text()
    assert text.startswith("<!doctype html>") and '"verdict":"admitted"' in text
    code, _, err = cli("report", MODEL, "--html", tmp_path / "nowhere" / "x.html")
    assert code != 0 and "nowhere" in err


def test_cli_status_report_tokenize_health(cli):
    code, out, _ = cli("status")
    assert code == 0 and MODEL in out and "SERVING" in out
    assert json.loads(cli("status", "--json")[1])["models"]
    code, out, _ = cli("report", MODEL)
    assert code == 0 and MODEL in out
    assert json.loads(cli("report", MODEL, "--json")[1])["verdict"] == "admitted"
    code, out, _ = cli("tokenize", MODEL, PROMPT, "--json")
    assert code == 0 and json.loads(out) == EXPECTED["prompt_ids"]
    ids = list(map(str, EXPECTED["prompt_ids"]))
    assert PROMPT in cli("tokenize", MODEL, "--decode", *ids)[1]
    assert cli("health", "ready")[:2] == (0, "SERVING\n")
    assert cli("health", "nobody")[0] == 1


def test_cli_embed(cli, repository):
    # In f32: the gate would refuse some quantizations of random weights.
    code, out, err = cli("admit", repository / "tiny_bert", "--name", "exact_bert", "--scheme", "f32")
    assert code == 0, (out, err)
    code, out, err = cli("embed", "exact_bert", "a b", "c", "--json")
    assert code == 0, err
    rows = json.loads(out)
    assert len(rows) == 2 and len(rows[0]["values"]) == len(rows[1]["values"]) > 0
    # More texts than the queue has places (256).
    code, out, err = cli("embed", "exact_bert", "--json", input="a\n" * 1024)
    assert code == 0 and len(json.loads(out)) == 1024, err
    assert cli("unload", "exact_bert")[0] == 0


def test_cli_policy_explain_is_offline(cli):
    code, out, _ = cli("policy", "explain", address="127.0.0.1:1")
    assert code == 0 and "rule" in out and "why" in out


def test_cli_output_that_cannot_be_written_is_a_failure(cli):
    with open("/dev/full", "w") as full:
        for arguments in (["generate", MODEL, PROMPT, "--max-tokens", "2"], ["version"], ["status"]):
            code, _, err = cli(*arguments, stdout=full)
            assert code == 1 and "cannot write the output" in err, (arguments, code, err)


def test_cli_errors_are_one_line(cli):
    code, _, err = cli("status", address="127.0.0.1:1")
    assert code == 2 and err.count("\n") == 1 and "no server answers at 127.0.0.1:1" in err
    code, _, err = cli("generate", "nobody", "hello")
    assert code == 1 and err.count("\n") == 1 and "unknown model: 'nobody'" in err
    code, _, err = cli("generate", "--no-such-flag")
    assert code == 1 and err.count("\n") == 1
    code, _, err = cli("admit", "/no/such/model")
    assert code == 1 and "/no/such/model" in err


def test_cli_words_for_wrong_usage(cli):
    for arguments, words in (
            (["frobnicate"], "unknown command 'frobnicate'; the commands are generate, embed"),
            (["--timeout", "-1", "status"], "'-1' is not a number of seconds"),
            (["generate", MODEL, ""], "no prompt"),
            (["tokenize", MODEL], "no text"),
            (["generate", MODEL, "hi", "--max-tokens", "0"], "max_tokens=0 is below 1"),
            (["generate", MODEL, "hi", "--model-version", "x"], "--model-version")):
        code, out, err = cli(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1) and words in err, (arguments, err)
    for address in ("nonsense", "localhost:", "localhost:99999"):
        code, _, err = cli("status", address=address)
        assert code == 1 and f"'{address}' is not HOST:PORT" in err, err


def test_cli_refuses_what_is_not_utf8(cli):
    for command in ("generate", "embed"):
        code, out, err = cli(command, MODEL, input=b"ab\xff\x00\xfe", text=False)
        assert (code, out, err.count(b"\n")) == (1, b"", 1) and b"not UTF-8" in err and b"0xFF" in err, err


def test_cli_stop_takes_one_word_each(cli):
    code, out, _ = cli("generate", MODEL, "--max-tokens", "40", "--stop", "zzz", "--stop", "there", PROMPT)
    assert code == 0 and "there" not in out


def test_cli_exit_codes(cli, own_server, tmp_path):
    """Each that `assay --help` promises, from the real program."""
    started = own_server("--policy", write_policy(tmp_path / "strict.yaml", mean_kl=1e-9))
    model = ROOT / "data" / "stories260k" / "stories260K-f32.gguf"

    def strict(*arguments):
        return cli(*arguments, address=started.address)

    help_text = cli("--help")[1]
    for meaning in ("0 done", "1 bad usage", "2 the server cannot be reached", "3 the accuracy gate"):
        assert meaning in help_text
    assert cli("generate", MODEL, PROMPT, "--max-tokens", "2")[0] == 0
    assert cli("version")[0] == 0
    assert cli("no-such-command")[0] == 1
    assert cli("report", "nobody")[0] == 1
    assert cli("admit", ROOT / "README.md")[0] == 1
    assert cli("status", address="127.0.0.1:1")[0] == 2
    assert cli("--timeout", "0.001", "generate", MODEL, PROMPT, "--max-tokens", "400", "--ignore-eos")[0] == 2
    code, out, err = strict("admit", model, "--name", "rejected", "--dry-run")
    assert code == 3 and "REJECTED" in out.upper() and "mean KL" in err, (out, err)
    assert strict("health", "ready")[0] == 0  # strict_readiness is off, and the verdicts are there
    assert strict("health", MODEL)[0] == 2  # rejected at the start
    assert strict("generate", MODEL, "hi")[0] in (1, 2)


def write_policy(path, mean_kl):
    path.write_text(f"""version: 1
recipes:
  int8: {{scheme: int8_channel, activation: a8_token, embedding: int8_channel, kv: f16,
         fallback: {{scheme: bf16, activation: a16, max_fraction: 0}}}}
budgets:
  b: {{mean_kl: {mean_kl}, top1: 0, perplexity_ratio: 1000, cosine: 0, label_agreement: 0}}
rules:
  - {{name: only, reason: test, when: {{device: cpu}}, recipe: int8, budget: b}}
""")
    return path


def test_check_config_looks_at_the_files_that_are_named(tmp_path):
    bad = tmp_path / "policy.yaml"
    bad.write_text("version: 1\nrulez: []\n")
    for flags, words in ((["--policy", tmp_path / "none.yaml"], "none.yaml: No such file"),
                         (["--policy", bad], "rulez"),
                         (["--model-repository", tmp_path / "none"], "cannot read the model repository"),
                         (["--evaluation-text", tmp_path], "is a folder, expected a file"),
                         (["--config", tmp_path], "is a folder, expected a file")):
        code, out, err = run_server("--check-config", *flags)
        assert (code, out, err.count("\n")) == (1, "", 1) and words in err, (flags, err)


def test_wrong_flags_are_named(tmp_path):
    code, _, err = run_server("--grpc-prot", "1")
    assert code == 1 and "unknown flag --grpc-prot; did you mean '--grpc-port'?" in err
    code, _, err = run_server("models")
    assert code == 1 and "unexpected argument 'models'" in err


def test_connections_are_counted(server):
    before = server.metric(r"^assay_grpc_connections ")
    channels = [grpc.insecure_channel(server.address, options=[("grpc.use_local_subchannel_pool", 1)])
                for _ in range(3)]
    for channel in channels:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    wait_until(lambda: server.metric(r"^assay_grpc_connections ") == before + 3)
    for channel in channels:
        channel.close()
    wait_until(lambda: server.metric(r"^assay_grpc_connections ") == before)


def test_admission_without_a_terminal_is_a_line_per_stage(server):
    lines = [line for line in server.stderr if line.startswith(f"  {MODEL}:1  ")]
    stages = [line.split(" s  ")[-1] for line in lines if "SERVING" not in line]
    assert "quantize" in stages and "verify" in stages
    assert len(set(stages)) == len(stages), lines


def test_cli_help_has_examples_and_exit_codes(cli):
    code, out, _ = cli("--help")
    assert code == 0 and "Examples:" in out and "Exit codes:" in out
    for command in ("generate", "embed", "status", "admit", "report", "tokenize", "health"):
        assert "Examples:" in cli(command, "--help")[1], command
