"""A target for Prometheus that serves the series of a model whose drift is made up (prometheus_live.py)."""

import http.server
import json
import threading
import time


class DriftStandIn:
    """Serves the series of a model that a drift monitor watches. `bad` turns the answers bad; `asleep` stops the evaluations."""

    def __init__(self):
        self.bad = self.asleep = False
        self.match = self.mismatch = 0.0
        self.began = self.evaluated = self._told = time.time()
        stand_in = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):  # the name is http.server's
                body = stand_in.text().encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def text(self):
        now = time.time()
        passed, self._told = now - self._told, now
        self.match += passed * (1 if self.bad else 5)
        self.mismatch += passed * (4 if self.bad else 0)
        if not self.asleep:
            self.evaluated = now
        score = 0.05 if self.bad else 0.01
        rows = [("shadow_samples_total", "result", {"match": self.match, "mismatch": self.mismatch}),
                ("state", "state", {"ok": not self.bad, "warn": 0, "violated": self.bad}),
                ("skipped_total", "reason", dict.fromkeys(("ring_full", "too_long", "failed", "not_serving"), 0)),
                ("actions_total", "action", dict.fromkeys(("alert", "refresh", "raise_precision", "roll_back", "serve_reference"), 0))]
        for metric, value in (("score", score), ("threshold", 0.02), ("score_low", score - 0.005), ("score_high", score + 0.005)):
            rows.append((f"{metric}_ratio", "statistic", {"mean_kl": value, "top1_flip": value}))
        for metric, value in (("e_value", 1), ("change_evidence", 0), ("input_shifted", self.bad), ("last_evaluation_timestamp_seconds", self.evaluated),
                              ("shadow_tokens_total", 50 * self.match), ("shadow_cpu_seconds_total", self.match / 100)):
            rows.append((metric, "", {"": value}))
        labels = 'model="stand_in",version="1"'
        text = "".join(f'assay_drift_{metric}{{{labels}{f",{label}=" + json.dumps(k) if label else ""}}} {float(v)}\n'
                       for metric, label, values in rows for k, v in values.items())
        return (f'{text}assay_inference_requests_total{{{labels},outcome="success"}} {self.match + self.mismatch}\n'
                f"assay_model_last_swap_timestamp_seconds{{{labels}}} {self.began}\n")

    def stop(self):
        self._server.shutdown()
