"""Drift from end to end, with the real server and stories260K: healthy requests, then what goes wrong, until it is found and mended.

usage: drift.py [--build build/dev] [--requests 10000] [--clients 4]

Two servers, one after the other, both with every request computed again on the reference (drift.rate 1):
  memory   healthy traffic stays OK; then a weight of the served copy is overwritten (a hook of the test server); drift.action refresh
           admits the checkpoint again, which takes over while requests go on.
  domain   a model with static activation ranges under a policy that allows them, calibrated and judged on text like the traffic; then
           the traffic changes to random tokens, which the ranges were not calibrated for; drift.action serve_reference puts f32 in its
           place.
Prints, for each: healthy requests and their verdict, requests and seconds to detection and to the new version, failed requests, and
the events. Exit code 1 when anything is not as it should be.
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

    def __init__(self, name, folder, flags, program, clients):
        from conftest import Assay, Server  # the tests' own: starts the binaries, speaks assay.v1

        self.name, self.clients, self.numbers, self.failed = name, clients, itertools.count(), 0
        repository = folder / "models" / "stories260k"
        repository.mkdir(parents=True)
        shutil.copy(STORIES, repository)
        self.server = Server(folder, "--model-repository", folder / "models", "--drift-rate", "1", "--drift-cpu-share", "1",
                             "--drift-tokens-per-second", "1e9", *flags, program=program).wait_ready()
        self.assay = Assay(self.server.address)

    def ask(self, foreign):
        number = next(self.numbers)
        source = random.Random(number)
        request = self.assay.message("GenerateRequest", model="stories260k", sampling=self.assay.message(
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

    def run(self, healthy, spoil, foreign):
        began = time.monotonic()
        self.drive(healthy)
        while self.drift().waiting > 0:
            time.sleep(0.05)
        before = self.drift()
        print(f"\n## {self.name}\n{healthy} healthy requests in {time.monotonic() - began:.0f} s: {before.state} after {before.samples} "
              f"computed again ({before.skipped} left out), {before.statistic} {before.score:.5f} [{before.low:.5f}, "
              f"{before.high:.5f}], limit {before.limit:.5f}, top-1 {100 * (1 - before.top1_flip):.1f} %")
        if spoil:
            self.server.process.send_signal(signal.SIGUSR1)
        began = time.monotonic()
        asked = self.drive(self.most, foreign, until=2)
        after = self.drift()
        print(f"then version {after.version}: {after.state}, {after.statistic} {after.score:.5f}, limit {after.limit:.5f}")
        print(f"then {asked} requests and {time.monotonic() - began:.1f} s until version 2 answered; failed requests: {self.failed}")
        history = [event for event in self.events() if event.kind in ("drift", "action")]
        for event in history:
            print(f"  {event.severity:7} {event.kind:6} {event.reason}")
        self.server.terminate()
        self.server.wait()
        found = any("VIOLATED after" in event.reason for event in history)
        return before.state == "OK" and found and asked < self.most and self.failed == 0


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
    arguments = parser.parse_args()
    os.environ["ASSAY_BUILD_DIR"] = str(arguments.build)
    sys.path.insert(0, str(ROOT / "tests" / "e2e"))
    spoilable = (arguments.build / "tests" / "e2e" / "spoilable_server", STORIES)
    plain = (arguments.build / "server" / "assay-server",)
    policy = pathlib.Path(__file__).with_name("static_policy.yaml")
    good = True
    with tempfile.TemporaryDirectory() as folder:
        memory = Scenario("memory", pathlib.Path(folder), ("--drift-action", "refresh"), spoilable, arguments.clients)
        good = memory.run(arguments.requests, spoil=True, foreign=False) and good
    with tempfile.TemporaryDirectory() as folder:
        calibration, evaluation = (write_text(pathlib.Path(folder) / f"{n}.txt", n, 800) for n in (1, 2))
        flags = ("--policy", policy, "--drift-action", "serve_reference", "--calibration", calibration, "--evaluation-text", evaluation)
        domain = Scenario("domain", pathlib.Path(folder), flags, plain, arguments.clients)
        good = domain.run(arguments.requests, spoil=False, foreign=True) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
