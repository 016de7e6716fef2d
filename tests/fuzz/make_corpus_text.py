#!/usr/bin/env python3
"""Small seeds for the fuzz targets that read text, requests or bytes of clients: python tests/fuzz/make_corpus_text.py (needs
protoc and nothing else). Inputs that a fuzzer found are added by hand under the name crash-<what it was>; corpus/artifact/report.json
is the certificate of a real admission of stories260K, with its lists cut."""
import hashlib
import json
import pathlib
import re
import struct
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).parent / "corpus"


def write(target, name, data):
    (HERE / target).mkdir(parents=True, exist_ok=True)
    (HERE / target / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def encode(message, text):
    """A protobuf message from its text form."""
    file = "proto/assay/v1/assay.proto" if message.startswith("assay") else "proto/open_inference/grpc_service.proto"
    return subprocess.run(["protoc", f"--encode={message}", file], cwd=ROOT, input=text.encode(), capture_output=True, check=True).stdout


def methods():
    """Full names of the services' methods and their requests, in the order of fuzz_rpc.cc."""
    found = []
    for file, package in (("assay/v1/assay.proto", "assay.v1"), ("open_inference/grpc_service.proto", "inference")):
        text = (ROOT / "proto" / file).read_text()
        text = text[text.index("\nservice "):]
        for part in text[:text.index("\n}")].split("rpc ")[1:]:
            name, rest = part.split("(", 1)
            found.append((name.strip(), f"{package}.{rest.split(')')[0].split()[-1]}"))
    return found


def yaml_seeds():
    # Short ones: YAML is slow to read. The example's sections, without the comments.
    sections = re.split(r"\n(?=\S)", re.sub(r"\s*#.*", "", (ROOT / "deploy/example.yaml").read_text()))
    for number, few in enumerate(sections[i:i + 6] for i in range(0, len(sections), 6)):
        write("server_config", f"example{number}.yaml", "\n".join(few) + "\n")
    write("server_config", "short.yaml", "grpc_port: 8001\nlog_level: debug\ndrift:\n  rate: 0.5\nmodel_roots: a:b\n")
    write("server_config", "unknown.yaml", "grcp_port: 1\n")
    write("server_config", "twice.yaml", "grpc_port: 1\ngrpc_port: 2\n")
    write("server_config", "list.yaml", "grpc: [1, 2]\n")
    write("server_config", "two.yaml", "a: 1\n---\nb: 2\n")
    write("server_config", "crash-cycle.yaml", "a: &x\n  b: *x\n")
    write("server_config", "crash-aliases.yaml", "a: &a {x: 1, y: 2}\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} {{x: *{chr(97 + i)}, y: *{chr(97 + i)}}}\n" for i in range(24)))
    for quoted in ("null", "~", "'a\\tb'", "\"a\\nb\"", "- x", "'- x'", "\"\\x01\"", "''"):
        write("server_config", "quoted-" + hashlib.sha256(quoted.encode()).hexdigest()[:6], f"model_repository: {quoted}\n")
    write("policy", "short", b"\0recipes: {a: {scheme: int8_channel, activation: a16}}\nbudgets: {b: {mean_kl: 0.1}}\nrules:\n- {name: r, "
          b"reason: x, when: {device: cpu, cpu_isa: [avx2], min_cores: 2, min_memory: 1GiB}, recipe: a, budget: b}\nversion: 1\n")
    write("policy", "static", b"\0" + (ROOT / "loadtest/scenarios/static_policy.yaml").read_bytes())
    for name in ("w8a8_static_smoothquant", "w4a16_awq_gptq", "w8a16_kv4_window", "auto", "w4a4_svdquant"):
        write("policy", name, b"\1" + re.sub(r"(?m)^#.*\n", "", (ROOT / f"quant/recipes/{name}.yaml").read_text()).encode())
    for name in ("cpu_avx2", "h100"):
        write("policy", name, b"\2" + (ROOT / f"tests/golden/hardware/{name}.json").read_bytes())
    write("policy", "candidate", b"\3int8_channel/a8_token")
    arrivals = "\0# seconds\n0 a\n0.5\n1e1, a\n"
    for name in ("overload_sweep", "chat", "embeddings"):
        write("load_scenario", name, re.sub(r"(?m)^#.*\n", "", (ROOT / f"loadtest/scenarios/{name}.yaml").read_text()) + arrivals)
    write("load_scenario", "burst", "requests:\n- {name: a, model: m, call: generate, weight: 2, prompt_words: {lognormal: 20, sigma: 1},"
          " deadline: 1s, cancel_after: 3, reader_delay: 1ms}\n- {name: l, call: live}\nphases:\n- {name: p, seconds: 2, drain: true,"
          " arrivals: {burst: 1, peak: 9, every: 1s, length: 100ms}}\n")


def text_seeds():
    digest = hashlib.sha256(b"x").hexdigest()
    write("access", "tokens", f"# name roles sha256\nalice infer,observe {digest}\nbob admin {'0' * 64}\n\0x")
    write("access", "wrong", f"alice infer {digest[:-1]}\n")
    write("access", "role", f"alice root {digest}\n")
    write("access", "twice", f"a infer {digest}\na infer {digest}\n\0x")
    for i, text in enumerate(("model-1.a", "../m", "m/1", "in/1", "out/hosts", "f", "/etc/passwd", "%2e%2e/f", "./m//1/", "canary", "12",
                              "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                              "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3", "<a href='x'>&\"")):
        write("names", f"{i:02}", text)
    write("labelled", "label.jsonl", '{"text": "a", "label": 1}\n{"text": "b", "label": "long"}\n')
    write("labelled", "references.jsonl", '{"text": "a", "references": ["b", "c"]}\n')
    write("labelled", "pair.jsonl", '{"text": "a", "other": "b"}\n')
    write("labelled", "wrong.jsonl", '{"text": "a", "label": 2}\n{"text": 1}\n')
    header = "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 2), }"
    npy = b"\x93NUMPY\x01\x00v\x00" + header.ljust(117).encode() + b"\n"
    write("npy", "i4", npy + struct.pack("<4i", 1, 2, 3, 4))
    write("npy", "i8", npy.replace(b"<i4", b"<i8") + struct.pack("<4q", 1, 2, 3, 1 << 40))
    write("npy", "one-row", npy.replace(b"(2, 2)", b"(4,)  ") + struct.pack("<4i", 1, 2, 3, 4))
    write("npy", "fortran", npy.replace(b"False", b"True ") + struct.pack("<4i", 1, 2, 3, 4))
    write("npy", "huge", npy.replace(b"(2, 2), }" + b" " * 14, b"(99999999999, 99999999), }"[:23]))
    write("npy", "version2", b"\x93NUMPY\x02\x00v\x00\x00\x00" + npy[10:] + struct.pack("<4i", 1, 2, 3, 4))
    units = [1 << 10, (1 << 10) | 1 << 8 | 97, 1 << 31 | 0, 0]
    write("charsmap", "rule", bytes([3]) + b"abc" + struct.pack("<I4I", 16, *units) + b"xyz\0")
    write("charsmap", "empty", bytes([2]) + b"ab" + struct.pack("<II", 4, 0))
    write("charsmap", "too-long", bytes([1]) + b"a" + struct.pack("<I", 400))
    for name, marks in {
        "chatml": "{% for m in messages %}{{'<|im_start|>' + m['role']}}{% endfor %}{% if not system %}You are a helper.<|im_end|>",
        "llama2": "{{ bos_token + '[INST] <<SYS>>\\n' + content.strip() + ' [/INST]' }}",
        "llama3": "<|start_header_id|>{{ role }}<|end_header_id|>\n\nCutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024",
        "mistral": "{{ '[INST]' + message + '[/INST]' }}[SYSTEM_PROMPT]", "zephyr": "<|user|>\n{{ content + eos_token }}<|assistant|>",
    }.items():
        write("chat_template", name, marks + "\0 Hello, world ")


def config_seeds():
    for name in ("llama3", "llama_yarn", "qwen3", "mistral", "bert_mean", "roberta_classifier"):
        folder = ROOT / "tests/golden/models" / name
        data = (folder / "model.safetensors").read_bytes()
        header = json.loads(data[8:8 + struct.unpack("<Q", data[:8])[0]])
        shapes = {key: entry["shape"] for key, entry in header.items() if key != "__metadata__"}
        config = json.loads((folder / "config.json").read_text())
        write("model_config", name, json.dumps({"config": config, "tensors": shapes}))


def artifact_seeds():
    tensor = {"role": "codes", "dtype": "i8", "shape": [4, 8], "sha256": "0" * 64}
    slot = {"scheme": "int8_channel", "activation": "a16", "fallback": False, "shape": [4, 8], "group": 0, "tensors": [tensor]}
    digest = hashlib.sha256(json.dumps({"w": slot}, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    stored = slot | {"why": "", "kl_contribution": 0.5, "tensors": [tensor | {"offset": 0, "bytes": 32}]}
    manifest = {"format": "assay-artifact", "format_version": 1, "key": "k", "source_hash": "s", "quantizer": "q",
                "artifact_hash": digest, "weights_bytes": 32, "slots": {"w": stored}}
    write("artifact", "manifest.json", json.dumps(manifest))
    write("artifact", "outside.json", json.dumps(manifest | {"weights_bytes": 31}))
    write("artifact", "rung.json", json.dumps({
        "recipe": "w4a16", "reason": "mean KL", "measured": True, "bytes_stored": 9, "seconds": 1.5,
        "loss": {"mean": 0.1, "low": 0.05, "high": 0.2}}))


def load_seeds():
    latency = {"count": 2, "mean": 1.5, "p50": 1, "p90": 2, "p99": 2, "p99.9": 2, "max": 2, "buckets": [[1, 1], [2, 1]]}
    figures = {"requests": 2, "good": 1, "tokens": 9, "ok_per_s": 2.0, "goodput_per_s": 1.0, "tokens_per_s": 9.0, "outcomes": {"OK": 2},
               "ttft_ms": latency, "itl_ms": latency, "e2e_ms": latency, "failed_ms": {"count": 0, "buckets": []}}
    report = {"schema": 1, "scenario": "s", "protocol": "oip", "seed": 1, "scale": 1, "slo_ms": {"ttft": 1.0, "itl": None, "e2e": None},
              "invalid": ["late"], "totals": figures, "phases": [figures | {"name": "p"}]}
    write("load_report", "report.json", json.dumps(report))
    write("load_report", "metrics.txt", "# HELP x y\nprocess_resident_memory_bytes 1e6\nassay_process_pending_requests{model=\"a\"} 2\n"
          "assay_inference_requests_total{outcome=\"OK\",model=\"a\"} 3 # {trace_id=\"1\"} 1\n")


INFER = {
    "text": 'model_name: "text" id: "7" inputs { name: "text_input" datatype: "BYTES" shape: 1 contents { bytes_contents: "Hello" } }'
            ' parameters { key: "max_tokens" value { int64_param: 4 } } parameters { key: "temperature" value { double_param: 0.5 } }'
            ' outputs { name: "text_output" }',
    "raw": 'model_name: "text" inputs { name: "text_input" datatype: "BYTES" shape: 2 shape: 1 }'
           ' raw_input_contents: "\\005\\000\\000\\000Hello\\001\\000\\000\\000a" parameters { key: "stop" value { string_param: "[\\"a\\"]" } }'
           ' parameters { key: "stop_token_ids" value { string_param: "[1,2]" } } parameters { key: "seed" value { uint64_param: 3 } }',
    "ids": 'model_name: "embed" inputs { name: "input_ids" datatype: "INT64" shape: 2 shape: 2 contents { int64_contents: 1'
           ' int64_contents: 2 int64_contents: 3 int64_contents: 0 } } inputs { name: "attention_mask" datatype: "FP32" shape: 2'
           ' shape: 2 contents { fp32_contents: 1 fp32_contents: 1 fp32_contents: 1 fp32_contents: 0 } }',
    "half": 'model_name: "classify" inputs { name: "input_ids" datatype: "INT32" shape: 1 shape: 1 } inputs { name: "attention_mask"'
            ' datatype: "FP16" shape: 1 shape: 1 } raw_input_contents: "\\001\\000\\000\\000" raw_input_contents: "\\000\\074"',
    "stream": 'model_name: "text" model_version: "2" inputs { name: "text_input" datatype: "BYTES" shape: 1 contents {'
              ' bytes_contents: "<s>" } } parameters { key: "triton_enable_empty_final_response" value { bool_param: true } }'
              ' parameters { key: "timeout" value { int64_param: 1000000 } } parameters { key: "top_k" value { int64_param: 5 } }'
              ' parameters { key: "repetition_penalty" value { double_param: 1.5 } }',
}
GENERATE = ('model: "text" prompt: "Hello" sampling { max_tokens: 5 temperature: 0.7 top_p: 0.9 min_p: 0.1 seed: 1 stop: "x"'
            ' stop_token_ids: 3 logprobs: 2 presence_penalty: 0.5 }')
REQUESTS = {
    "Generate": GENERATE, "Embed": 'model: "embed" texts: "a" texts: "b" truncate: true',
    "Tokenize": 'model: "text" text: "a <s>" parse_special: true', "Detokenize": 'model: "text" ids: 70 ids: 257 keep_special: true',
    "Admit": 'name: "x" path: "m" recipe: "auto" canary_share: 0.5 dry_run: true', "GetReport": 'model: "text" version: 2 columns: 80',
    "ExplainPolicy": 'hardware_json: "{\\"cpu\\": {\\"model\\": \\"x\\", \\"isa\\": \\"avx2\\", \\"cores\\": 2, \\"memory_bytes\\": 9}}"',
    "SetCanaryShare": 'model: "text"', "Promote": 'model: "text"', "RollBack": 'model: "text"', "DropCanary": 'model: "text"',
    "GetDrift": "", "ModelInfer": INFER["text"], "ModelStreamInfer": INFER["stream"], "ModelReady": 'name: "text" version: "2"',
    "ModelMetadata": 'name: "embed"', "ModelConfig": 'name: "classify"', "ModelStatistics": 'name: "text"',
    "RepositoryModelLoad": 'model_name: "x" parameters { key: "scheme" value { string_param: "f32" } }',
    "RepositoryModelUnload": 'model_name: "x"',
}


def request_seeds():
    for name, text in INFER.items():
        data = encode("inference.ModelInferRequest", text)
        write("tensors", name, data)
        write("infer_request", name, data)
    for number, (method, message) in enumerate(methods()):
        write("rpc", method, bytes([number]) + encode(message, REQUESTS.get(method, "")))
    chat = 'model: "text" chat { messages { role: "system" content: "s" } messages { role: "user" content: "u" } }'
    write("rpc", "chat", bytes([0]) + encode("assay.v1.GenerateRequest", chat))
    write("rpc", "ids", bytes([0]) + encode("assay.v1.GenerateRequest", 'model: "text" prompt_ids { ids: 1 ids: 300 }'))


def http_seeds():
    def get(path, *headers, method="GET"):
        return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", *headers, "", ""])

    for name, request in {
        "metrics": get("/metrics", "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5"), "readyz": get("/readyz"),
        "head": get("/healthz", method="HEAD"), "post": get("/metrics", "Content-Length: 3", method="POST") + "abc",
        "status": get("/"), "report": get("/models/te%78t/2/report.json"), "html": get("/models/text/1/report"),
        "refused": get("/status", "Authorization: Bearer x"), "dots": get("/../../etc/passwd"), "absolute": get("http://x/readyz"),
        "chunked": get("/status", "Transfer-Encoding: chunked", method="POST") + "3\r\nabc\r\n0\r\n\r\n",
        "upgrade": get("/", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: eA==", "Sec-WebSocket-Version: 13"),
        "range": get("/status", "Range: bytes=1-2", "Expect: 100-continue"), "pipelined": get("/healthz") * 3,
        "no-version": "GET /healthz\r\n\r\n", "cut": "GET /metr", "preface": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "long": get("/" + "a" * 2000),
    }.items():
        write("http", name, request)


yaml_seeds()
text_seeds()
config_seeds()
artifact_seeds()
load_seeds()
request_seeds()
http_seeds()
