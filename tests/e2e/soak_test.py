"""The short form of loadtest/soak.py: 64 clients under cancellations and deadlines, then SIGTERM."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent.parent / "loadtest"))
from soak import soak  # noqa: E402


def test_sixty_four_clients_and_sigterm_lose_nothing(tmp_path):
    seen, _ = soak(seconds=8, clients=64, folder=tmp_path)
    assert seen["finished"] > 64 and seen["cancelled"] > 0 and seen["expired"] > 0
