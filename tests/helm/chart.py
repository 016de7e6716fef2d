"""Runs the real helm on helm/assay, and validates what comes out against Kubernetes' schemas and those of crds.json."""

import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

import jsonschema
import kubernetes_validate
import pytest
import referencing
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "assay"
RELEASE, NAMESPACE = "test", "models"
MINORS = ("1.30", "1.32", "1.35", "1.37")
SCHEMAS = pathlib.Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema"
CRDS = json.loads((pathlib.Path(__file__).parent / "crds.json").read_text())
sys.path.insert(0, str(ROOT / "scripts"))

import get_helm  # noqa: E402


class Refused(Exception):
    """helm did not render; the text is what it said."""


def variants():
    return {path.name.removesuffix("-values.yaml"): path for path in sorted((CHART / "ci").glob("*-values.yaml"))}


def helm(*arguments):
    """Standard output. Without the pinned helm the test is skipped, but not on CI, where it must be there."""
    if not get_helm.is_there():
        (pytest.fail if os.environ.get("CI") else pytest.skip)("NOT RUN: no helm (scripts/get_helm.py fetches it); the chart is not tested")
    with tempfile.TemporaryDirectory() as home:  # no plugins, no repositories, no cluster of the user's
        environment = {"PATH": os.environ["PATH"], "HOME": home, "KUBECONFIG": f"{home}/none"}
        done = subprocess.run([get_helm.path(), *map(str, arguments)], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise Refused("\n".join(line for line in done.stderr.splitlines() if not line.startswith("level=INFO")))
    return done.stdout


def load(text):
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


@functools.lru_cache(maxsize=None)
def rendered_text(arguments, minor):
    return helm("template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", minor, *arguments)


def render(*arguments, minor=MINORS[-1]):
    """The documents. Parsed anew each time: tests may change them."""
    return load(rendered_text(arguments, minor))


def render_variant(name, minor=MINORS[-1]):
    return render("--values", str(variants()[name]), minor=minor)


def render_values(values, minor=MINORS[-1]):
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "values.yaml"
        path.write_text(yaml.safe_dump(values))
        return load(helm("template", RELEASE, CHART, "--namespace", NAMESPACE, "--kube-version", minor, "--values", path))


def notes(values):
    """What helm says after an installation with a file of values."""
    return helm("install", RELEASE, CHART, "--namespace", NAMESPACE, "--dry-run=client", "--values", values).split("NOTES:\n")[1]


@functools.lru_cache(maxsize=None)
def registry(minor):
    definitions = json.loads((SCHEMAS / f"v{minor}.0-local-strict" / "_definitions.json").read_text())
    resource = referencing.Resource.from_contents(definitions, referencing.jsonschema.DRAFT202012)
    return referencing.Registry().with_resource("_definitions.json", resource).crawl()  # once, not at each reference


@functools.lru_cache(maxsize=None)
def validator(api_version, kind, minor):
    """None: nobody knows this kind."""
    if schema := CRDS.get(f"{api_version}/{kind}"):
        return jsonschema.Draft202012Validator(schema)
    group, _, version = api_version.rpartition("/")
    name = "-".join(filter(None, [kind.lower(), group.split(".")[0], version]))
    path = SCHEMAS / f"v{minor}.0-local-strict" / f"{name}.json"
    return jsonschema.Draft202012Validator(json.loads(path.read_text()), registry=registry(minor)) if path.is_file() else None


def schema_problems(documents, minor):
    found = []
    for document in documents:
        name = f"{document['kind']} {document['metadata']['name']}"
        check = validator(document["apiVersion"], document["kind"], minor)
        if check is None:
            found.append(f"{name}: {document['apiVersion']} has no such kind in {minor}")
            continue
        found += [f"{name}: {'.'.join(map(str, error.path))}: {error.message}" for error in check.iter_errors(document)]
    return found


def one(documents, kind, suffix=""):
    """The only document of a kind whose name ends so."""
    found = [d for d in documents if d["kind"] == kind and d["metadata"]["name"].endswith(suffix)]
    assert len(found) == 1, f"{len(found)} of {kind} *{suffix}"
    return found[0]


def pod_of(documents):
    return one(documents, "Deployment")["spec"]["template"]["spec"]


def config_of(documents):
    maps = [d for d in documents if d["kind"] == "ConfigMap" and "config.yaml" in d.get("data", {})]
    assert len(maps) == 1
    return yaml.safe_load(maps[0]["data"]["config.yaml"])


def server_binary():
    """Of the build tree; the test is skipped where there is none, or one that does not have the settings yet."""
    path = pathlib.Path(os.environ.get("ASSAY_BUILD_DIR", "/nowhere")).absolute() / "server" / "assay-server"
    if not path.is_file():
        pytest.skip(f"NOT RUN: no {path}; what the chart writes is not tried on the server")
    known = subprocess.run([path, "--check-config"], capture_output=True, text=True).stdout
    if not all(f"{key}:" in known for key in ("health_port", "admin_port", "tls", "auth", "limits")):
        pytest.skip("NOT RUN: this assay-server is older than the settings that the chart writes")
    return path
