#!/usr/bin/env python3
"""Writes the Grafana dashboards beside it. usage: make_dashboards.py [--check]      Needs nothing but Python."""

import json
import pathlib
import sys

from panels import MODEL, PROCESS, VERSION, dashboard, gauge, light, mean, panel, quantile, quantiles, rate, steps

HERE = pathlib.Path(__file__).resolve().parent
LINES = "timeseries"
NAME = "{{model}}:{{version}}"
REQUESTS = "assay_inference_requests_total"
DURATION = "assay_inference_request_duration_seconds"
FIRST_TOKEN = "assay_llm_time_to_first_token_seconds"
BATCH = "assay_inference_batch_size"
SAMPLES = "assay_drift_shadow_samples_total"
BUDGETS = (("availability", 0.001), ("latency", 0.01), ("accuracy", 0.02))


def slo(name, window):
    return f"model:assay_slo_{name}:error_ratio_rate{window}{{{VERSION}}}"


def burn(window):
    return [(f"{slo(name, window)} / {budget:g}", f"{name} {NAME}") for name, budget in BUDGETS[:2]]


def drift_over_limit():
    by = "model, version, statistic"
    return (f"{gauge('assay_drift_score_ratio', by, how='max')}\n"
            f"/ on (model, version, statistic) ({gauge('assay_drift_threshold_ratio', by, how='max')} > 0)")


def limit(at):
    return steps((None, "green"), (at, "red"))


def overview():
    not_ready = f"(1 - max by (job, instance, model) (assay_model_ready{{{PROCESS},model=~\"$model\"}}))"
    serving = f"max(\n  (1 - up{{{PROCESS}}})\n  or {not_ready}\n  or {slo('availability', '5m')}\n)"
    state = f"assay_drift_state{{{MODEL},state="
    accurate = f'max(2 * {state}"violated"}} or {state}"warn"}} or 0 * {state}"ok"}})\nor vector(-1)'
    refused = rate("assay_inference_rejected_total", of=f'{MODEL},reason="queue_full"')
    full = (f"max(\n  assay_llm_kv_cache_usage_ratio{{{MODEL}}}\n  or process_open_fds{{{PROCESS}}}"
            f" / process_max_fds{{{PROCESS}}}\n  or clamp_max(1000 * {refused}, 1)\n)")
    lights = [
        light("Serving?", "NO: a server does not answer, a model does not serve, or more than 1.44 % of requests fail. BARELY:"
              " more than 0.1 % fail. Next: dashboard Serving, `assay status`.", serving, (0.001, 0.0144)),
        light("Accurate?", "NO: outputs differ from the reference beyond the limit, for certain. BARELY: the drift monitor"
              " warns. NOT WATCHED: no drift monitor. Next: dashboard Accuracy drift, `assay drift`.", accurate, (1, 2)),
        light("Fast?", "NO: more than 14.4 % of requests miss the latency objective in five minutes. BARELY: more than 1 %."
              " Next: dashboards Serving, and Batching and memory.", f"max({slo('latency', '5m')})", (0.01, 0.144),
              empty="NO TRAFFIC"),
        light("Room left?", "NO: the KV cache or the file descriptors are 95 % in use, or a full queue turns requests away."
              " BARELY: 80 %. Next: dashboard Batching and memory.", full, (0.8, 0.95)),
    ]
    plain = steps((None, "transparent"))
    firing = 'sum(ALERTS{alertstate="firing",alertname=~"Assay.+"}) or vector(0)'
    numbers = [
        panel("Alerts firing", "stat", "none", "Alerts of assay.rules.yml that fire; each has a runbook.", (firing, ""),
              height=4, thresholds=steps((None, "green"), (1, "red"))),
        panel("Versions that serve", "stat", "none", "Model versions in state SERVING, all servers together.",
              (f"sum(assay_model_ready{{{MODEL}}})", ""), height=4, thresholds=plain),
        panel("Requests", "stat", "reqps", "Finished requests per second.", (f"sum({rate(REQUESTS)})", ""), height=4,
              thresholds=plain),
        panel("Tokens", "stat", "none", "Generated tokens per second.",
              (f"sum({rate('assay_llm_generated_tokens_total')})", ""), height=4, thresholds=plain),
        panel("First token, p95", "stat", "s", "95 of 100 first tokens came within this time.",
              (quantile(0.95, FIRST_TOKEN, "job"), ""), height=4, thresholds=plain),
        panel("Memory", "stat", "bytes", "Resident memory of the server processes.",
              (f"sum(process_resident_memory_bytes{{{PROCESS}}})", ""), height=4, thresholds=plain),
    ]
    trends = [
        panel("Requests by model", LINES, "reqps", "Finished requests per second.", (rate(REQUESTS), NAME)),
        panel("Errors", LINES, "percentunit", "Share of requests that fail, time out or are refused, over five minutes;"
              " 0.1 % is the objective.", (slo("availability", "5m"), NAME), min=0, thresholds=limit(0.001)),
        panel("Slow requests", LINES, "percentunit", "Share of requests that miss the latency objective, over five minutes;"
              " 1 % is the objective.", (slo("latency", "5m"), NAME), min=0, thresholds=limit(0.01)),
    ]
    more = [
        panel("Drift, as a share of its limit", LINES, "percentunit", "Divergence from the reference over its limit; 100 % is"
              " the limit.", (drift_over_limit(), f"{NAME} {{{{statistic}}}}"), min=0, thresholds=limit(1)),
        panel("KV cache in use", LINES, "percentunit", "Share of blocks that live sequences hold.",
              (gauge("assay_llm_kv_cache_usage_ratio", "instance, model, version", how="max"), f"{{{{instance}}}} {NAME}"), min=0,
              max=1),
        panel("Error budget spent in three days", LINES, "percentunit", "100 %: the last three days used up what three days"
              " may use.", *burn("3d"), min=0, thresholds=limit(1)),
    ]
    return dashboard("assay-overview", "Assay: overview", "Is it serving, accurate, fast, and is there room? Then the trends.",
                     [(None, lights), (None, numbers), ("Trends", trends), (None, more)])


def serving():
    method = "grpc_method, grpc_code"
    return dashboard("assay-serving", "Assay: serving", "Rate, errors and durations of requests; tokens; the process.", [
        ("Requests", [
            panel("Requests by outcome", LINES, "reqps", "Finished requests per second.",
                  (rate(REQUESTS, "model, outcome"), "{{model}} {{outcome}}")),
            panel("Errors", LINES, "percentunit", "Share of requests that fail, time out or are refused, over five minutes.",
                  (slo("availability", "5m"), NAME), min=0),
            panel("Latency", LINES, "s", "From arrival to the last byte, inside the server.", *quantiles(DURATION, .5, .95, .99)),
        ]),
        (None, [
            panel("Budget burn, one hour", LINES, "none", "1: the budget lasts 30 days. 14.4: a page.", *burn("1h"), min=0),
            panel("Latency, all requests", "heatmap", "short", "Requests per bucket of duration.",
                  (f"sum by (le) (increase({DURATION}_bucket{{{MODEL}}}[$__rate_interval]))", "{{le}}")),
            panel("gRPC status codes", LINES, "reqps", "Finished RPCs per second by method and code.",
                  (rate("grpc_server_handled_total", method, PROCESS) + " > 0", "{{grpc_method}} {{grpc_code}}")),
        ]),
        (None, [
            panel("Refused", LINES, "reqps", "Requests refused before any work, and connections turned away or cut, by reason.",
                  (rate("assay_inference_rejected_total", "model, reason"), "{{model}} {{reason}}"),
                  (rate("assay_connections_refused_total", "reason", PROCESS) + " > 0", "connection {{reason}}")),
            panel("Given up", LINES, "reqps", "Deadlines that passed and requests that clients cancelled, by stage.",
                  (rate("assay_inference_deadline_exceeded_total", "model, stage"), "deadline {{model}} {{stage}}"),
                  (rate("assay_inference_cancelled_total", "model, stage"), "cancelled {{model}} {{stage}}")),
            panel("Connections and RPCs", LINES, "none", "Open connections and RPCs that are being handled.",
                  (gauge("assay_grpc_connections", "instance", PROCESS), "connections {{instance}}"),
                  (gauge("assay_http_connections", "instance", PROCESS), "HTTP {{instance}}"),
                  (gauge("assay_grpc_rpcs_in_flight", "instance", PROCESS), "RPCs {{instance}}")),
        ]),
        ("Text generation", [
            panel("Time to first token", LINES, "s", "From arrival to the first token.", *quantiles(FIRST_TOKEN, .5, .95, .99)),
            panel("Time between tokens", LINES, "s", "Of one stream.",
                  *quantiles("assay_llm_inter_token_latency_seconds", .5, .95, .99)),
            panel("Tokens", LINES, "none", "Per second: read in prompts, and generated.",
                  (rate("assay_llm_prompt_tokens_total"), f"prompt {NAME}"),
                  (rate("assay_llm_generated_tokens_total"), f"generated {NAME}")),
        ]),
        (None, [
            panel("Ends of generations", LINES, "reqps", "By reason.",
                  (rate("assay_llm_requests_total", "model, finish_reason"), "{{model}} {{finish_reason}}")),
            panel("Whole generations", LINES, "s", "From arrival to the last token.",
                  *quantiles("assay_llm_request_duration_seconds", .5, .95)),
            panel("Lengths", LINES, "none", "Tokens of prompts and answers, p95.",
                  (quantile(.95, "assay_llm_request_prompt_tokens"), f"prompt {NAME}"),
                  (quantile(.95, "assay_llm_request_generated_tokens"), f"answer {NAME}")),
        ]),
        ("Process", [
            panel("CPU", LINES, "none", "Cores in use, and how many the process may use.",
                  (rate("process_cpu_seconds_total", "instance", PROCESS), "in use {{instance}}"),
                  (gauge("assay_device_cores", "instance", PROCESS), "of {{instance}}"), min=0),
            panel("File descriptors", LINES, "percentunit", "Share of the limit that is open.",
                  (f"process_open_fds{{{PROCESS}}} / process_max_fds{{{PROCESS}}}", "{{instance}}"), min=0, max=1),
            panel("Threads", LINES, "none", "Of the server process.", (f"process_threads{{{PROCESS}}}", "{{instance}}"), min=0),
            panel("Up since", "stat", "s", "Time since the process started.",
                  (f"time() - process_start_time_seconds{{{PROCESS}}}", "{{instance}}"), thresholds=steps((None, "transparent"))),
        ]),
    ])


def batching_memory():
    size = f"{rate(BATCH + '_sum')}\n/ ({rate(BATCH + '_count')} > 0)"
    hits = f"{rate('assay_llm_prefix_cache_hit_tokens_total')}\n/ ({rate('assay_llm_prompt_tokens_total')} > 0)"
    blocks, block = gauge("assay_llm_kv_cache_blocks"), gauge("assay_llm_kv_block_tokens", how="max")
    return dashboard("assay-batching-memory", "Assay: batching and memory", "How requests are batched; where memory goes.", [
        ("Batching", [
            panel("Mean batch", LINES, "none", "Requests in one executed batch.", (size, NAME), min=0),
            panel("Batches by size", "heatmap", "short", "Executed batches per bucket of size.",
                  (f"sum by (le) (increase({BATCH}_bucket{{{MODEL}}}[$__rate_interval]))", "{{le}}")),
            panel("Time of one batch", LINES, "s", "Execution of a batch.",
                  *quantiles("assay_inference_compute_duration_seconds", .5, .95)),
        ]),
        (None, [
            panel("Wait in the queue", LINES, "s", "For a place in a batch.",
                  *quantiles("assay_inference_queue_duration_seconds", .5, .95, .99)),
            panel("Waiting and running", LINES, "none", "Requests.",
                  (gauge("assay_inference_pending_requests"), f"waiting {NAME}"),
                  (gauge("assay_inference_running_requests"), f"running {NAME}")),
            panel("Turned away", LINES, "reqps", "Refused because the queue was full.",
                  (rate("assay_inference_rejected_total", of=f'{MODEL},reason="queue_full"'), NAME), min=0),
        ]),
        ("KV cache", [
            panel("In use", LINES, "percentunit", "Share of blocks that live sequences hold.",
                  (gauge("assay_llm_kv_cache_usage_ratio", how="max"), NAME), min=0, max=1),
            panel("Blocks", LINES, "none", "In use, kept for a common prefix, free.",
                  (gauge("assay_llm_kv_cache_blocks", "model, version, state"), f"{NAME} {{{{state}}}}"), min=0),
            panel("Room", "stat", "none", "Tokens that the cache can hold.",
                  (f"{blocks} * on (model, version) {block}", NAME), thresholds=steps((None, "transparent"))),
        ]),
        (None, [
            panel("Sequences", LINES, "none", "Running and waiting.",
                  (gauge("assay_llm_sequences_running"), f"running {NAME}"),
                  (gauge("assay_llm_sequences_waiting"), f"waiting {NAME}")),
            panel("Preemptions", LINES, "none", "Sequences per second that gave up their blocks and are computed again.",
                  (rate("assay_llm_preemptions_total"), NAME), min=0),
            panel("Prompt tokens from the cache", LINES, "percentunit", "Share of prompt tokens that a common prefix saved.",
                  (hits, NAME), min=0, max=1),
        ]),
        ("Memory", [
            panel("By model and kind", LINES, "bytes", "Weights, KV cache, workspace, reference.",
                  (gauge("assay_model_memory_bytes", "model, version, kind"), f"{NAME} {{{{kind}}}}"), min=0),
            panel("Process", LINES, "bytes", "Resident memory.",
                  (gauge("process_resident_memory_bytes", "instance", PROCESS), "{{instance}}"), min=0),
            panel("Devices", LINES, "bytes", "Memory of the host, or what its cgroup allows.",
                  (gauge("assay_device_memory_bytes", "instance, device, state", PROCESS), "{{instance}} {{device}} {{state}}"), min=0),
            panel("All models together", LINES, "none", "Waiting and running requests and the KV cache's use, for routers.",
                  (gauge("assay_process_pending_requests", "instance", PROCESS), "waiting {{instance}}"),
                  (gauge("assay_process_running_requests", "instance", PROCESS), "running {{instance}}"),
                  (gauge("assay_process_kv_cache_usage_ratio", "instance", PROCESS), "KV cache {{instance}}")),
        ]),
    ])


def admission_quantization():
    stage = "model, version, stage"
    return dashboard("assay-admission-quantization", "Assay: admission and quantization",
                     "What was admitted, at which precision, what it cost in accuracy and time.", [
        ("Models", [
            panel("States", "state-timeline", "none", "1: the version is in this state.",
                  (gauge("assay_model_state", "model, version, state", how="max") + " == 1", f"{NAME} {{{{state}}}}")),
            panel("Versions", "table", "none", "Format, precision and device of what serves.",
                  (f"max by (model, version, format, precision, device) (assay_model_info{{{MODEL}}})", "")),
            panel("Time since the last swap", "stat", "s", "Since the version began to serve.",
                  (f"time() - {gauge('assay_model_last_swap_timestamp_seconds', how='max')}", NAME),
                  thresholds=steps((None, "transparent"))),
        ]),
        ("Quantization", [
            panel("Layers by precision", "bargauge", "none", "Layers that the recipe and the search left at each precision.",
                  (gauge("assay_quantization_layers", "model, version, precision", how="max"), f"{NAME} {{{{precision}}}}")),
            panel("Compression", "bargauge", "none", "Bytes of the weights as they came over bytes as they are served.",
                  (gauge("assay_quantization_compression_ratio", how="max"), NAME)),
            panel("Accuracy loss at admission", "bargauge", "none",
                  "Against the reference: mean KL in nats, top-1 and cosine loss as shares, perplexity as a ratio (1: none).",
                  (gauge("assay_admission_accuracy_loss_ratio", "model, version, metric", how="max"), f"{NAME} {{{{metric}}}}")),
        ]),
        ("Admission", [
            panel("Ends", "bargauge", "none", "Admissions by outcome since the server started.",
                  (gauge("assay_admission_total", "model, version, outcome"), f"{NAME} {{{{outcome}}}}")),
            panel("Last time of each stage", "bargauge", "s", "Of the last admission.",
                  (gauge("assay_admission_last_duration_seconds", stage, how="max") + " > 0", f"{NAME} {{{{stage}}}}")),
            panel("Mean time of each stage", "bargauge", "s", "Of all admissions since the server started.",
                  (mean("assay_admission_duration_seconds", "stage", PROCESS), "{{stage}}")),
        ]),
        (None, [
            panel("In progress", LINES, "none", "Admissions that run now.",
                  (gauge("assay_admission_in_progress", "instance", PROCESS), "{{instance}}"), min=0),
            panel("Mean time to serve", "bargauge", "s", "From the request to SERVING, from the cache or quantized anew.",
                  (mean("assay_model_load_duration_seconds", "source", PROCESS), "{{source}}")),
            panel("Artifact cache", LINES, "none", "Look-ups since the server started, by result.",
                  (gauge("assay_artifact_cache_requests_total", "instance, result", PROCESS), "{{instance}} {{result}}"), min=0),
            panel("Size of the cache", LINES, "bytes", "Artifacts on disk.",
                  (gauge("assay_artifact_cache_bytes", "instance", PROCESS, how="max"), "{{instance}}"), min=0),
        ]),
    ])


def drift():
    by, name = "model, version, statistic", f"{NAME} {{{{statistic}}}}"
    differ = rate(SAMPLES, of=f'{MODEL},result="mismatch"')
    state = "assay_drift_state{" + MODEL + ",state="
    return dashboard("assay-drift", "Assay: accuracy drift", "Do live answers still agree with the reference?", [
        ("Verdict", [
            panel("State", "stat", "none", "Of each version.",
                  (f'max by (model, version) (2 * {state}"violated"}} or {state}"warn"}} or 0 * {state}"ok"}})', NAME),
                  mappings=[{"type": "value", "options": {"0": {"index": 0, "text": "OK"}, "1": {"index": 1, "text": "WARN"},
                                                          "2": {"index": 2, "text": "VIOLATED"}}}],
                  thresholds=steps((None, "green"), (1, "yellow"), (2, "red"))),
            panel("Since the last evaluation", "stat", "s", "Time since a request was last computed again.",
                  (f"time() - ({gauge('assay_drift_last_evaluation_timestamp_seconds', how='max')} > 0)", NAME),
                  thresholds=steps((None, "green"), (600, "yellow"), (3600, "red"))),
            panel("Score over its limit", "bargauge", "percentunit", "100 % is the limit.", (drift_over_limit(), name), min=0,
                  thresholds=steps((None, "green"), (0.8, "yellow"), (1, "red"))),
        ]),
        ("Scores", [
            panel("Score, band and limit", LINES, "none",
                  "Mean over the shadow samples, its confidence band (valid at any time), and the limit.",
                  (gauge("assay_drift_score_ratio", by, how="max"), name),
                  (gauge("assay_drift_score_low_ratio", by, how="max"), f"low {name}"),
                  (gauge("assay_drift_score_high_ratio", by, how="max"), f"high {name}"),
                  (gauge("assay_drift_threshold_ratio", by, how="max"), f"limit {name}"), width=16),
            panel("Samples that differ", LINES, "percentunit", "Share of shadow samples whose answer differs; 2 % is the"
                  " objective.", (f"{differ}\n/ ({rate(SAMPLES)} > 0)", NAME), width=8, min=0),
        ]),
        (None, [
            panel("Evidence of a violation", LINES, "none", "E-value; 1: none. VIOLATED at 1 / drift.alpha, by default 100.",
                  (gauge("assay_drift_e_value", how="max"), NAME)),
            panel("Evidence of a change", LINES, "none", "Like it, but a long good past is forgotten; 1 is none.",
                  (gauge("assay_drift_change_evidence", how="max"), NAME)),
        ]),
        ("Input", [
            panel("Cut off by static scales", LINES, "percentunit", "Share of a linear's input beyond its calibrated scale, where it"
                  " is worst; 0 where no scale is static.", (gauge("assay_drift_input_saturation_ratio", how="max"), NAME), min=0),
            panel("Range against admission", LINES, "none", "Largest input of a linear over the largest at admission; 3 is shifted."
                  " Also the outlier channels that are the same.",
                  (gauge("assay_drift_input_range_ratio", how="max"), f"range {NAME}"),
                  (gauge("assay_drift_input_outlier_overlap_ratio", how="min"), f"overlap {NAME}"), min=0),
            panel("Population stability", LINES, "none", "Lengths and tokens of prompts against the first that were served, beyond"
                  " what chance explains; above 0.25: other ones.", (gauge("assay_drift_input_psi_ratio", by, how="max"), name), min=0),
        ]),
        ("Work", [
            panel("Samples", LINES, "none", "Per second, by result.",
                  (rate(SAMPLES, "model, version, result"), f"{NAME} {{{{result}}}}"), min=0),
            panel("Skipped", LINES, "none", "Samples per second that were not compared, by reason.",
                  (rate("assay_drift_skipped_total", "model, version, reason"), f"{NAME} {{{{reason}}}}"), min=0),
            panel("Cost", LINES, "none", "Cores that the reference takes.",
                  (rate("assay_drift_shadow_cpu_seconds_total"), f"cores {NAME}"), min=0),
            panel("Tokens of the reference", LINES, "none", "Per second.",
                  (rate("assay_drift_shadow_tokens_total"), NAME), min=0),
        ]),
        (None, [
            panel("Actions", "bargauge", "none", "What the monitor did since the server started.",
                  (gauge("assay_drift_actions_total", "model, action", of=f'{PROCESS},model=~"$model"'), "{{model}} {{action}}")),
        ]),
    ])


def files():
    """{file name: its text}."""
    made = {"overview": overview, "serving": serving, "batching-memory": batching_memory,
            "admission-quantization": admission_quantization, "drift": drift}
    return {f"{name}.json": json.dumps(make(), indent=1) + "\n" for name, make in made.items()}


def main():
    stale = [name for name, text in files().items() if not (HERE / name).is_file() or (HERE / name).read_text() != text]
    if sys.argv[1:] == ["--check"]:
        sys.exit(f"not what make_dashboards.py writes; run it: {' '.join(stale)}" if stale else 0)
    for name in stale:
        (HERE / name).write_text(files()[name])


if __name__ == "__main__":
    main()
