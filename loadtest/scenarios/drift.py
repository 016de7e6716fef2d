"""Drift from end to end, with the real server and stories260K: healthy requests, then what goes wrong, until it is found and mended.

usage: drift.py [--build build/dev] [--requests 10000] [--clients 4] [--model FOLDER] [--only NAME] [--without-prometheus]

Three servers, one after the other, every request computed again on the reference (drift.rate 1; --model: of another model than the
repository's stories260K, smollm2 for one, with fewer --requests):
  memory   healthy traffic stays OK; then a weight of the served copy is overwritten (a hook of the test server); drift.action refresh
           admits the checkpoint again, which takes over while requests go on.
  kv       the same with an 8-bit KV cache whose calibrated key scales are spoiled.
  domain   a model with static activation ranges under a policy that allows them, calibrated and judged on text like the traffic; then
           the traffic changes to random tokens, which the ranges were not calibrated for; refresh calibrates with live prompts.
Admissions after the first are held up for ten seconds, as long as a model of some size takes: else the violation would be over before
Prometheus can see it. A real Prometheus scrapes the server with the rules of deploy/prometheus, their windows scaled to a hundredth: AssayDriftViolated must
fire, and clear once the new version serves. Prints, for each: healthy requests and their verdict, requests and seconds to detection, to
the alert and to the new version, failed requests, and the events. Exit code 1 when anything is not as it should be.
"""
import argparse
import concurrent.futures
import itertools
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
STORIES = ROOT / "data" / "stories260k" / "stories260K-f32.gguf"
WORDS = "once upon a time there was little girl boy dog cat who liked to play in the park with her mom friend ball tree happy".split()


class Scenario:
    most = 5000  # requests until it must have been found and mended

    def __init__(self, name, folder, flags, program, options):
        from conftest import Assay, Server  # the tests' own: starts the binaries, speaks assay.v1

        self.name, self.clients, self.numbers, self.failed = name, options.clients, itertools.count(), 0
        self.model, self.folder, self.alerts = options.model.stem.split(".")[0].lower(), folder, None
        repository = folder / "models" / self.model
        repository.mkdir(parents=True)
        shutil.copy(options.model, repository)
        self.server = Server(folder, "--model-repository", folder / "models", "--drift-rate", "1", "--drift-cpu-share", "1",
                             "--drift-tokens-per-second", "1e9", *flags, program=program).wait_ready()
        self.assay = Assay(self.server.address)
        if not options.without_prometheus:
            import prometheus_live as live

            live.point_at(folder, "server", f"127.0.0.1:{self.server.http_port()}")
            self.prometheus = live.Prometheus(folder)
            live.wait_until(lambda: self.prometheus.query('up{job="assay"} == 1') and not self.prometheus.get("alerts")["alerts"])
            self.alerts = live.Watch(self.prometheus)

    def ask(self, foreign):
        number = next(self.numbers)
        source = random.Random(number)
        request = self.assay.message("GenerateRequest", model=self.model, sampling=self.assay.message(
            "SamplingParams", max_tokens=12, temperature=1.0, seed=number, ignore_eos=True))
        if foreign:
            request.prompt_ids.ids.extend(source.randrange(3, 512) for _ in range(24))
        else:
            request.prompt = " ".join(source.choices(WORDS, k=8))
        try:
            *_, last = self.assay.call("Generate", request)
            return last.version
        except Exception as error:  # noqa: BLE001 - counted, shown, and the scenario fails
            print("failed request:", error)
            self.failed += 1
            return 0

    def drive(self, count, foreign=False, until=None):
        """Requests until one answers from version `until`, at most `count`. How many there were."""
        with concurrent.futures.ThreadPoolExecutor(self.clients) as pool:
            for done in range(0, count, self.clients):
                versions = list(pool.map(lambda _: self.ask(foreign), range(self.clients)))
                if until is not None and until in versions:
                    return done + self.clients
        return count

    def drift(self):
        return self.assay.call("GetDrift", self.assay.message("GetDriftRequest")).models[0]

    def events(self):
        return self.assay.call("ListEvents", self.assay.message("ListEventsRequest")).events

    def quiet(self):
        while self.drift().waiting > 0:
            time.sleep(0.05)

    def run(self, healthy, spoil, foreign):
        began = time.monotonic()
        self.drive(healthy)
        self.quiet()
        before = self.drift()
        print(f"\n## {self.name}\n{healthy} healthy requests in {time.monotonic() - began:.0f} s: {before.state} after {before.samples} "
              f"computed again ({before.skipped} left out), {before.statistic} {before.score:.5f} [{before.low:.5f}, "
              f"{before.high:.5f}], limit {before.limit:.5f}, top-1 {100 * (1 - before.top1_flip):.1f} %, "
              f"input {'shifted' if before.input.shifted else 'not shifted'}", flush=True)
        early = sorted(self.alerts.first) if self.alerts else []
        if spoil:
            self.server.process.send_signal(signal.SIGUSR1)
        began, looked_at = time.monotonic(), before.samples
        asked = self.drive(self.most, foreign, until=2)
        print(f"then {asked} requests and {time.monotonic() - began:.1f} s until version 2 answered")
        good = self.mended(foreign, began, min(150, max(20, healthy // 4)))
        history = [event for event in self.events() if event.kind in ("drift", "input", "action")]
        for event in history:
            print(f"  v{event.version} {event.severity:7} {event.kind:6} {event.reason}")
        found = [event.reason for event in history if "VIOLATED after" in event.reason]
        if found:
            after = int(found[0].split("VIOLATED after ")[1].split()[0])
            print(f"found after {after - looked_at} requests that were computed again; failed requests: {self.failed}")
        return before.state == "OK" and bool(found) and asked < self.most and self.failed == 0 and good and not early

    def mended(self, foreign, began, enough):
        """The alert has fired; the version that serves now is OK on the same traffic, and the alert clears."""
        if self.alerts:
            self.alerts.until_fired("AssayDriftViolated", seconds=60)
            print(f"AssayDriftViolated fired {self.alerts.first['AssayDriftViolated'] - began:.1f} s after")
        for _ in range(20):
            self.drive(min(200, 2 * enough), foreign)
            self.quiet()
            last = self.drift()
            if last.state == "OK" and last.samples >= enough:
                break
        print(f"now version {last.version}: {last.state} after {last.samples}, {last.statistic} {last.score:.5f}, limit "
              f"{last.limit:.5f}")
        if self.alerts:
            self.alerts.until_clear("AssayDriftViolated", seconds=60)
        return last.state == "OK"

    def close(self):
        if self.alerts:
            self.alerts.stop()
            self.prometheus.stop()
        self.server.terminate()
        self.server.wait()


def write_text(path, seed, sentences):
    """What healthy requests are made of, for calibration and evaluation."""
    source = random.Random(seed)
    path.write_text("".join(" ".join(source.choices(WORDS, k=8)) + ". " for _ in range(sentences)))
    return path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default=ROOT / "build" / "dev", type=pathlib.Path)
    parser.add_argument("--requests", type=int, default=10000)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--model", type=pathlib.Path, default=STORIES, help="a GGUF")
    parser.add_argument("--only", choices=("memory", "kv", "domain"))
    parser.add_argument("--without-prometheus", action="store_true")
    options = parser.parse_args()
    os.environ["ASSAY_BUILD_DIR"] = str(options.build)
    os.environ["SPOILABLE_ADMISSION_SECONDS"] = "0" if options.without_prometheus else "10"
    sys.path[:0] = [str(ROOT / "tests" / "e2e"), str(ROOT / "tests" / "slow")]
    spoilable = (options.build / "tests" / "e2e" / "spoilable_server", options.model)
    here = pathlib.Path(__file__).parent
    static = ("--policy", here / "static_policy.yaml", "--calibration", "{1}", "--evaluation-text", "{2}")
    kv = ("--policy", here / "kv_policy.yaml")
    good = True
    for name, flags in (("memory", ()), ("kv", kv), ("domain", static)):
        if options.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            texts = {f"{{{n}}}": write_text(pathlib.Path(folder) / f"{n}.txt", n, 800) for n in (1, 2)}
            flags = [texts.get(flag, flag) for flag in flags]
            one = Scenario(name, pathlib.Path(folder), (*flags, "--drift-action", "refresh"), spoilable, options)
            try:
                good = one.run(options.requests, spoil=name != "domain", foreign=name == "domain") and good
            finally:
                one.close()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
