#!/usr/bin/env python3
"""Writes assay.rules.yml: recording rules of three objectives, burn-rate alerts, and alerts of what needs a person.

usage: make_rules.py [--check] [--output FILE] [--job assay] [--latency 0.25] [--first-token 0.5] [--scale 1]
                     [--runbooks docs/runbooks/]

--latency and --first-token are limits in seconds and must be bucket edges of the server's histograms. --scale multiplies
every window and every `for`, so that a test sees in minutes what takes days: with 0.01 an hour is 36 seconds. The names of the
records stay. --check compares FILE with what would be written. Needs nothing but Python.

The windows and factors are those of the Site Reliability Workbook, chapter 5: a page when 2 % of the budget of 30 days burns in
an hour (14.4x) or 5 % in six hours (6x), a ticket for 10 % in a day (3x) or in three days (1x); the short window lets the alert
clear.
"""

import argparse
import dataclasses
import json
import pathlib
import re
import sys

HERE = pathlib.Path(__file__).resolve().parent
OUTPUT = HERE / "assay.rules.yml"
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
BURNS = {"page": (("14.4", "1h", "5m"), ("6", "6h", "30m")), "ticket": (("3", "1d", "2h"), ("1", "3d", "6h"))}
LEAST_BAD_EVENTS = 3  # fewer raise no alert: one failed request of a quiet model is no outage
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
LATENCY_EDGES = (.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10)
FIRST_TOKEN_EDGES = (.00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .2, .35, .5, .75, 1, 2, 5, 10, 30)
BY = "sum by (model, version)"


@dataclasses.dataclass(frozen=True)
class Objective:
    """`bad` over `events` may be at most `budget`. Both hold <w> where a window goes."""
    name: str
    budget: float
    ratio: str
    events: str
    says: str


@dataclasses.dataclass(frozen=True)
class Alert:
    """Text holds <5m> where a duration goes and <#1h> where its seconds go."""
    name: str
    severity: str
    expr: str
    hold: str
    summary: str
    description: str


def bound(edge):
    """Matches the bucket: whole numbers are "1" in Prometheus' text and "1.0" in OpenMetrics and in Prometheus 3."""
    return f'le=~"{edge:g}|{edge:g}[.]0"' if edge == int(edge) else f'le="{edge:.10f}"'.rstrip('0"') + '"'


def objectives(options):
    requests, rejected = "assay_inference_requests_total", "assay_inference_rejected_total"
    ours = f'rate({rejected}{{reason=~"queue_full|not_ready"}}[<w>])'
    bad = f'{BY} (rate({requests}{{outcome=~"error|timeout"}}[<w>]) or {ours})'
    total = f'{BY} (rate({requests}{{outcome!="rejected"}}[<w>]) or {ours})'
    samples = "assay_drift_shadow_samples_total"
    all_samples = f"{BY} (rate({samples}[<w>]))"
    first, whole = "assay_llm_time_to_first_token_seconds", "assay_inference_request_duration_seconds"
    generates = f"{BY} (count_over_time({first}_count[<w>]))"

    def slow(metric, edge):
        within = f'{BY} (rate({metric}_bucket{{{bound(edge)}}}[<w>]))'
        return f"1 - {within} / ({BY} (rate({metric}_count[<w>])) > 0)"

    return (
        Objective("availability", 0.001, f"{bad}\n/ ({total} > 0)", total,
                  "of requests fail, time out, or are refused because the queue is full or the model is not ready"),
        Objective("latency", 0.01,
                  f"({slow(first, options.first_token)})\nor\n(({slow(whole, options.latency)})\n unless {generates})",
                  f"{BY} (rate({first}_count[<w>]))\nor\n({BY} (rate({whole}_count[<w>]))\n unless {generates})",
                  f"of requests are slow (first token after {options.first_token:g} s; models without tokens: answer after"
                  f" {options.latency:g} s)"),
        Objective("accuracy", 0.02, f'{BY} (rate({samples}{{result="mismatch"}}[<w>]))\n/ ({all_samples} > 0)', all_samples,
                  "of shadow samples differ from the reference"),
    )


def recordings(objective):
    rules = []
    prefix = f"model:assay_slo_{objective.name}"
    long_windows = [pair[1] for pairs in BURNS.values() for pair in pairs]
    for window in WINDOWS:
        rules.append((f"{prefix}:error_ratio_rate{window}", objective.ratio.replace("<w>", f"<{window}>")))
        if window in long_windows:
            rules.append((f"{prefix}:events_rate{window}", objective.events.replace("<w>", f"<{window}>")))
    return rules


def burn_alerts(objective):
    prefix = f"model:assay_slo_{objective.name}"
    for severity, pairs in BURNS.items():
        parts = []
        for factor, long, short in pairs:
            limit = f"({factor} * {objective.budget:g})"
            seconds = int(long[:-1]) * SECONDS[long[-1]]
            least = LEAST_BAD_EVENTS / (float(factor) * objective.budget) / seconds
            parts.append(f"(\n  {prefix}:error_ratio_rate{long} > {limit}\n  and {prefix}:error_ratio_rate{short} > {limit}\n"
                         f"  and {prefix}:events_rate{long} > {least:.4g}\n)")
        speed, when = ("Fast", "within days") if severity == "page" else ("Slow", "before its 30 days are over")
        yield Alert(f"Assay{objective.name.capitalize()}{speed}Burn", severity, "\nor\n".join(parts), "",
                    f"{{{{ $labels.model }}}}:{{{{ $labels.version }}}} spends its {objective.name} budget {when}",
                    f"{{{{ $value | humanizePercentage }}}} {objective.says}; {100 * objective.budget:g}% are allowed.")


def happened(series):
    """In the last quarter of an hour: a counter that grew, or one that is new and not 0 (it came with its first event)."""
    return f"(increase({series}[<15m>]) > 0)\nor\n(({series} > 0) unless {series} offset <15m>)"


def drift_alerts():
    per, per_model = "max by (model, version, statistic)", "max by (model, version)"
    served = 'sum by (model, version) (rate(assay_inference_requests_total{outcome="success"}[<1h>]))'
    version = "{{ $labels.model }}:{{ $labels.version }}"
    return (
        Alert("AssayDriftViolated", "page", 'max by (model, version) (assay_drift_state{state="violated"}) == 1', "",
              f"{version} no longer answers like its reference",
              "The evidence that the mean difference is above its limit has reached 1 / drift.alpha: this is no bad luck."),
        Alert("AssayDriftScoreAboveThreshold", "ticket",
              f"{per} (assay_drift_score_ratio)\n> on (model, version, statistic)\n{per} (assay_drift_threshold_ratio)", "15m",
              f"{version} drifts: {{{{ $labels.statistic }}}} is above its limit",
              "The mean over the shadow samples is {{ $value | printf \"%.3g\" }} and has been above the limit for 15 minutes."),
        Alert("AssayInputShifted", "ticket", f"{per_model} (assay_drift_input_shifted) == 1", "15m",
              f"the input of {version} is not what it was admitted for",
              "Its answers may still be right. `assay drift` says what has changed."),
        Alert("AssayDriftEvaluationStale", "ticket",
              f"(time() - {per_model} (assay_drift_last_evaluation_timestamp_seconds)) > <#1h>\n"
              f"and on (model, version) {served} > 0.03\n"
              f"and on (model, version) (time() - {per_model} (assay_model_last_swap_timestamp_seconds)) > <#1h>",
              "5m", f"no drift evaluation of {version} for an hour, though it serves",
              "More than 100 requests were answered in the last hour and none was compared with the reference."),
    )


def serving_alerts(job):
    version = "{{ $labels.model }}:{{ $labels.version }}"
    where = "{{ $labels.instance }}"
    return (
        Alert("AssayTargetAbsent", "page", f'up{{job="{job}"}} == 0\nor\nabsent(up{{job="{job}"}})', "2m",
              f"Prometheus cannot scrape assay-server {where}",
              "The process is gone, its HTTP port does not answer, or no target is configured."),
        Alert("AssayRestartLoop", "page", f'changes(process_start_time_seconds{{job="{job}"}}[<30m>]) > 2', "",
              f"assay-server {where} keeps restarting", "{{ $value }} restarts in 30 minutes."),
        Alert("AssayDeviceLost", "page", f'assay_device_healthy{{job="{job}"}} == 0', "",
              f"{{{{ $labels.device }}}} of assay-server {where} is lost",
              "An error ended the use of the device; what it served fails until the server is started anew."),
        Alert("AssayQueueRejections", "ticket",
              f'{BY} (rate(assay_inference_rejected_total{{reason="queue_full"}}[<5m>])) > 0', "5m",
              f"{version} turns requests away: its queue is full",
              "{{ $value | printf \"%.3g\" }} requests per second are refused."),
        Alert("AssayKvCacheSaturated", "ticket",
              "avg_over_time(assay_llm_kv_cache_usage_ratio[<10m>]) > 0.8\nand\nrate(assay_llm_preemptions_total[<10m>]) > 0", "",
              f"KV cache of {version} is full and sequences are preempted",
              "{{ $value | humanizePercentage }} of the cache were in use by live sequences, on average of 10 minutes."),
        Alert("AssayFileDescriptorsHigh", "ticket",
              f'process_open_fds{{job="{job}"}} / process_max_fds{{job="{job}"}} > 0.8', "5m",
              f"assay-server {where} runs out of file descriptors", "{{ $value | humanizePercentage }} of its limit are open."),
        Alert("AssayCertificateExpires", "ticket",
              f'assay_tls_certificate_expiry_timestamp_seconds{{job="{job}"}} - time() < <#7d>', "5m",
              f"the certificate of assay-server {where} ({{{{ $labels.certificate }}}}) ends within a week",
              "{{ $value | humanizeDuration }} are left. Whoever renews it has not done so."),
        Alert("AssayConnectionsRefused", "ticket",
              f'sum by (instance, reason) (rate(assay_connections_refused_total{{job="{job}"}}[<5m>])) > 0.1', "10m",
              f"assay-server {where} refuses connections: {{{{ $labels.reason }}}}",
              "{{ $value | printf \"%.3g\" }} connections per second are turned away or cut."),
    )


def admission_alerts():
    version = "{{ $labels.model }}:{{ $labels.version }}"
    return (
        Alert("AssayAdmissionFailed", "ticket", happened('assay_admission_total{outcome="failed"}'), "",
              f"admission of {version} failed on {{{{ $labels.instance }}}}",
              "The checkpoint could not be read or prepared. What served before still serves."),
        Alert("AssayAdmissionRejected", "ticket",
              happened('assay_admission_total{outcome=~"rejected_accuracy|rejected_size"}'), "",
              f"admission of {version} ended with {{{{ $labels.outcome }}}} on {{{{ $labels.instance }}}}",
              "The model does not pass the accuracy gate, or does not fit. What served before still serves."),
        Alert("AssayArtifactCorrupt", "ticket", happened('assay_artifact_cache_requests_total{result="corrupt"}'), "",
              "a cached artifact on {{ $labels.instance }} is damaged",
              "Its checksums do not match; the server quantized the checkpoint again."),
    )


def groups(options):
    """[(name, interval, records, alerts)]. Records stand before the alerts that read them: a group is evaluated in order."""
    made = [(f"assay-slo-{o.name}", "30s", recordings(o), tuple(burn_alerts(o))) for o in objectives(options)]
    return [*made, ("assay-drift", "30s", [], drift_alerts()), ("assay-serving", "30s", [], serving_alerts(options.job)),
            ("assay-admission", "30s", [], admission_alerts())]


def scaled(text, scale):
    """<5m> becomes a duration and <#5m> its seconds, both times `scale`."""
    def length(match):
        seconds = int(match[2]) * SECONDS[match[3]] * scale
        if match[1]:
            return f"{seconds:g}"
        if scale == 1:
            return match[2] + match[3]
        return f"{max(1000, round(1000 * seconds))}ms"
    return re.sub(r"<(#?)(\d+)([smhd])>", length, text)


def block(text, indent):
    return "|-\n" + "\n".join(" " * indent + line for line in text.splitlines())


def rules_text(options):
    lines = ["# Written by make_rules.py; change that file. Loaded with `rule_files:` (prometheus.example.yml).", "groups:"]
    for name, interval, records, alerts in groups(options):
        lines += [f"- name: {name}", scaled(f"  interval: <{interval}>", options.scale), "  rules:"]
        for record, expr in records:
            lines += [f"  - record: {record}", f"    expr: {block(scaled(expr, options.scale), 6)}"]
        for alert in alerts:
            lines += [f"  - alert: {alert.name}", f"    expr: {block(scaled(alert.expr, options.scale), 6)}"]
            if alert.hold:
                lines.append(scaled(f"    for: <{alert.hold}>", options.scale))
            labels = {"severity": alert.severity}
            if name.startswith("assay-slo-"):
                labels["slo"] = name.removeprefix("assay-slo-")
            annotations = {"summary": alert.summary, "description": alert.description,
                           "runbook_url": f"{options.runbooks}{alert.name}.md"}
            for key, entries in (("labels", labels), ("annotations", annotations)):
                lines.append(f"    {key}:")
                lines += [f"      {k}: {json.dumps(v)}" for k, v in entries.items()]
    return "\n".join(lines) + "\n"


def parse(arguments=()):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare, do not write")
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    parser.add_argument("--job", default="assay", help="job_name of the scrape configuration")
    parser.add_argument("--latency", type=float, default=0.25, choices=LATENCY_EDGES, metavar="SECONDS")
    parser.add_argument("--first-token", type=float, default=0.5, choices=FIRST_TOKEN_EDGES, metavar="SECONDS")
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--runbooks", default="docs/runbooks/", help="what stands before <alert>.md in runbook_url")
    return parser.parse_args(list(arguments))


def main():
    options = parse(sys.argv[1:])
    text = rules_text(options)
    if options.check:
        if not options.output.is_file() or options.output.read_text() != text:
            sys.exit(f"{options.output.name} is not what make_rules.py writes; run it")
    else:
        options.output.write_text(text)


if __name__ == "__main__":
    main()
