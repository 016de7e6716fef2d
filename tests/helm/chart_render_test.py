"""helm template over helm/assay/ci, for several Kubernetes minors: valid by schema, the golden rules hold, the golden renders are kept.

To renew the renders: ASSAY_RENEW=1 python -m pytest tests/helm/chart_render_test.py -k golden_render; then read the difference.
"""

import copy
import hashlib
import os
import pathlib
import subprocess

import pytest
import yaml

import chart
import golden_rules

GOLDEN = pathlib.Path(__file__).parent / "golden"
GOLDEN_VARIANTS = ("default", "cpu-ha", "gpu", "tls-mtls", "air-gapped")
IMAGE_VOLUMES_FROM = 33


def matrix():
    return [(name, minor) for name in chart.variants() for minor in chart.MINORS]


@pytest.mark.parametrize("name,minor", matrix())
def test_every_variant_is_valid_and_keeps_the_golden_rules(name, minor):
    if name == "oci-model" and int(minor.split(".")[1]) < IMAGE_VOLUMES_FROM:
        with pytest.raises(chart.Refused, match=f"image volumes need Kubernetes 1.33, this is v{minor}"):
            chart.render_variant(name, minor)
        return
    documents = chart.render_variant(name, minor)
    assert chart.schema_problems(documents, minor) == []
    allowed = ["test-assay: volume hostPath"] if name == "hostpath" else []
    assert golden_rules.problems(documents) == allowed


def without_payloads(documents):
    """Dashboards and rules by their digest: chart_files_test.py compares them with deploy/."""
    for document in documents:
        if document["metadata"]["labels"].get("app.kubernetes.io/component") == "monitoring":
            payload = "data" if document["kind"] == "ConfigMap" else "spec"
            for key, value in document[payload].items():
                text = value if isinstance(value, str) else yaml.safe_dump(value)
                document[payload][key] = f"sha256 {hashlib.sha256(text.encode()).hexdigest()}"
    return sorted(documents, key=lambda d: (d["kind"], d["metadata"]["name"]))


class Dumper(yaml.SafeDumper):
    """Texts of several lines as they are."""


Dumper.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


@pytest.mark.parametrize("name", GOLDEN_VARIANTS)
def test_golden_render(name):
    text = yaml.dump_all(without_payloads(chart.render_variant(name)), Dumper=Dumper, sort_keys=True, width=120)
    path = GOLDEN / f"{name}.yaml"
    if os.environ.get("ASSAY_RENEW"):
        path.write_text(text)
    assert text == path.read_text()


def test_an_older_kubernetes_is_refused():
    with pytest.raises(chart.Refused, match="chart requires kubeVersion: >=1.30"):
        chart.render(minor="1.29")


def test_names_stay_short_and_agree():
    long_name = "a" * 53  # the most that helm takes
    documents = chart.load(chart.helm("template", long_name, chart.CHART, "--namespace", chart.NAMESPACE, "--values",
                                      chart.variants()["cpu-ha"]))
    assert golden_rules.problems(documents) == []
    assert chart.pod_of(documents)["volumes"][0]["configMap"]["name"] in {d["metadata"]["name"] for d in documents if d["kind"] == "ConfigMap"}


@pytest.mark.parametrize("release,name", [("1abc", "1abc-assay"), ("a.b", "a.b-assay")])
def test_a_release_whose_services_could_have_no_name_is_refused(release, name):
    with pytest.raises(chart.Refused, match=f"a service's name has letters, digits and -, and begins with a letter; {name} does not"):
        chart.helm("template", release, chart.CHART)
    assert chart.helm("template", release, chart.CHART, "--set", "fullnameOverride=a1b")


def test_a_change_of_the_configuration_rolls_the_pods():
    def checksum(*settings):
        return chart.one(chart.render(*settings), "Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
    sums = [checksum(), checksum("--set", "config.log_level=debug"), checksum("--set", "policy=a"), checksum("--set", "drain.timeoutSeconds=31")]
    assert len(set(sums)) == 4
    assert checksum("--set", "replicas=2") == sums[0]


def test_selectors_are_the_same_in_every_version():
    """The API server refuses an upgrade that changes them."""
    chosen = chart.one(chart.render("--set", "image.tag=9.9.9,podLabels.a=b,commonLabels.c=d,profile=gpu"), "Deployment")["spec"]["selector"]
    assert chosen == {"matchLabels": {"app.kubernetes.io/name": "assay", "app.kubernetes.io/instance": "test",
                                      "app.kubernetes.io/component": "server"}}


def test_the_startup_probe_has_the_time_of_an_admission():
    for wanted, threshold in ((1800, 360), (1801, 361), (12, 3)):
        documents = chart.render("--set", f"admission.timeoutSeconds={wanted}")
        assert chart.pod_of(documents)["containers"][0]["startupProbe"]["failureThreshold"] == threshold
        assert chart.one(documents, "Deployment")["spec"]["progressDeadlineSeconds"] == wanted + 300


def test_gpu_profile_asks_for_a_gpu_of_the_wanted_kind():
    pod = chart.pod_of(chart.render_variant("gpu"))
    assert pod["containers"][0]["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 1}
    terms = pod["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    profile = [{"key": "nvidia.com/gpu.compute.major", "operator": "Gt", "values": ["8"]},
               {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-H100-80GB-HBM3", "NVIDIA-H200"]}]
    zones = [[{"key": "topology.kubernetes.io/zone", "operator": "In", "values": [zone]}] for zone in "ab"]
    assert [term["matchExpressions"] for term in terms] == [profile + zone for zone in zones]
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    cpu = chart.pod_of(chart.render())
    assert "affinity" not in cpu and "tolerations" not in cpu and "nvidia.com/gpu" not in cpu["containers"][0]["resources"]["limits"]


def test_one_pod_quantizes_under_a_lock_with_the_servers_settings():
    pod = chart.pod_of(chart.render_variant("everything"))
    container = pod["initContainers"][0]
    assert container["command"] == ["/usr/bin/flock", "--timeout", "600", "/cache/.quantize.lock", "assay", "quantize", "/models/a",
                                    "--output", "/cache"]
    assert container["args"] == ["--policy", "/etc/assay/policy.yaml", "--evaluation", "/data/evaluation.txt"]
    assert {"name": "ASSAY_LOG_LEVEL", "value": "debug"} in container["env"]
    assert container["image"] == pod["containers"][0]["image"] and container["resources"] == pod["containers"][0]["resources"]
    assert {"name": "data", "mountPath": "/data", "readOnly": True} in container["volumeMounts"]
    two = chart.pod_of(chart.render_variant("cpu-ha"))["initContainers"]
    assert [(c["name"], c["command"][4]) for c in two] == [("quantize-0", "/models/smollm2/1"), ("quantize-1", "/models/minilm/1")]
    assert all({"name": "models", "mountPath": "/models", "subPath": "production", "readOnly": True} in c["volumeMounts"] for c in two)


def test_what_quantizes_plans_for_the_servers_device_and_memory(tmp_path):
    """Else the artifact's key is another one, and the server quantizes again. 0 is the server's word for its default."""
    values = yaml.safe_load(chart.variants()["cpu-ha"].read_text())

    def arguments(config):
        return chart.pod_of(chart.render_values(values | {"config": config}))["initContainers"][0].get("args", [])

    assert arguments({"threads": 8, "memory_limit": "4GiB", "gpu": {"devices": "cuda:0", "profile": "sm80", "kv_cache": "2GiB"}}) == [
        "--threads", "8", "--memory-limit", "4GiB", "--gpu-devices", "cuda:0", "--gpu-profile", "sm80", "--gpu-kv-cache", "2GiB"]
    assert arguments({"threads": 0, "memory_limit": 0, "gpu": {"kv_cache": "0KiB"}}) == arguments({}) == []
    assay = chart.server_binary().parent.parent / "cli" / "assay"
    known = subprocess.run([assay, "quantize", "--help"], capture_output=True, text=True).stdout
    for size, problem in (("99999TiB", "no such file"), ("1 GiB", "no such file"), ("9" * 17, "no such file"), ("1XiB", "expected a positive size")):
        said = subprocess.run([assay, "quantize", "/nowhere", "--output", tmp_path, *arguments({"memory_limit": size} if size != "1XiB" else {}),
                               *(["--memory-limit", size] if size == "1XiB" else [])], capture_output=True, text=True)
        assert problem in said.stderr
    assert all(flag in known for flag in ("--threads", "--memory-limit", "--gpu-devices", "--gpu-profile", "--gpu-kv-cache", "--calibration"))


def test_tls_tokens_and_probes():
    documents = chart.render_variant("tls-mtls")
    config = chart.config_of(documents)
    assert config["tls"] == {"certificate": "/etc/assay-tls/tls.crt", "key": "/etc/assay-tls/tls.key", "reload_interval": "10s",
                             "client_ca": "/etc/assay-client-ca/ca.crt"}
    assert config["auth"] == {"tokens": "/etc/assay-auth/tokens", "max_concurrent": 64, "tokens_per_minute": 2000000}
    certificate = chart.one(documents, "Certificate")["spec"]
    assert certificate["secretName"] == "test-assay-tls" and "test-assay-headless.models.svc" in certificate["dnsNames"]
    assert "localhost" in certificate["dnsNames"] and certificate["ipAddresses"] == ["127.0.0.1", "::1"]
    without = chart.one(chart.render("--values", str(chart.variants()["tls-mtls"]), "--set", "tls.certManager.localNames=false"), "Certificate")["spec"]
    assert "localhost" not in without["dnsNames"] and "ipAddresses" not in without and without["issuerRef"] == certificate["issuerRef"]
    volumes = {volume["name"]: volume for volume in chart.pod_of(documents)["volumes"]}
    assert volumes["tls"]["secret"] == {"secretName": "test-assay-tls", "defaultMode": 0o440}
    # A mount by subPath would never see a renewed certificate.
    assert not any("subPath" in mount for mount in chart.pod_of(documents)["containers"][0]["volumeMounts"])
    endpoint = chart.one(documents, "ServiceMonitor")["spec"]["endpoints"][0]
    assert endpoint["scheme"] == "https" and endpoint["authorization"]["credentials"] == {"name": "prometheus-token", "key": "token"}
    assert all("appProtocol" not in d["spec"]["ports"][0] for d in documents if d["kind"] == "Service")


def test_only_grpc_leaves_the_cluster():
    service = chart.one(chart.render_variant("tls"), "Service", "test-assay")["spec"]
    assert service["type"] == "LoadBalancer" and [port["name"] for port in service["ports"]] == ["grpc"]
    assert service["externalTrafficPolicy"] == "Local"
    inside = chart.render("--set", "service.externalTrafficPolicy=Local")  # the API server refuses it there
    assert "externalTrafficPolicy" not in chart.one(inside, "Service", "test-assay")["spec"]


def test_autoscalers_ask_for_queue_and_kv_cache():
    hpa = chart.one(chart.render_variant("hpa"), "HorizontalPodAutoscaler")
    assert hpa["apiVersion"] == "autoscaling/v2"
    assert [(m["pods"]["metric"]["name"], m["pods"]["target"]["averageValue"]) for m in hpa["spec"]["metrics"]] == [
        ("assay_process_pending_requests", "3"), ("assay_process_kv_cache_usage_ratio", "800m")]
    keda = chart.one(chart.render_variant("keda"), "ScaledObject")["spec"]
    assert [t["metadata"]["query"] for t in keda["triggers"]] == [
        'sum(assay_process_pending_requests{namespace="models", pod=~"test-assay-.*"})',
        '100 * sum(assay_process_kv_cache_usage_ratio{namespace="models", pod=~"test-assay-.*"})']
    named = (chart.ROOT / "deploy" / "kubernetes" / "prometheus-adapter.yaml").read_text()
    assert "assay_process_(pending_requests|kv_cache_usage_ratio)" in named
    operations = (chart.ROOT / "docs" / "operations.md").read_text()
    assert "assay_process_pending_requests" in operations and "assay_process_kv_cache_usage_ratio" in operations


def test_air_gapped_has_one_registry_and_no_egress():
    documents = chart.render_variant("air-gapped")
    assert {c["image"] for _, c in golden_rules.containers(documents)} == {
        "registry.example.org:5000/ml/assay@sha256:0000000000000000000000000000000000000000000000000000000000000001"}
    assert chart.one(documents, "NetworkPolicy")["spec"]["egress"] == []


def test_extra_objects_are_templates():
    documents = chart.render_variant("everything")
    assert chart.one(documents, "ConfigMap", "-extra")["data"] == {"release": "test"}
    assert chart.one(documents, "ConfigMap", "-text")["metadata"]["name"] == "test-text"


# Each rule catches what breaks it: the rendering, changed in one place, has exactly the problems named.
BROKEN = {
    "image": (lambda d: chart.pod_of(d)["containers"][0].update(image="assay:latest"), ["test-assay/server: image assay:latest has no version"]),
    "resources": (lambda d: chart.pod_of(d)["containers"][0]["resources"].pop("limits"), ["test-assay/server: no limits.memory"]),
    "root": (lambda d: chart.pod_of(d)["securityContext"].pop("runAsNonRoot"), ["test-assay: may run as root"]),
    "seccomp": (lambda d: chart.pod_of(d)["securityContext"].pop("seccompProfile"), ["test-assay: no seccomp profile"]),
    "host": (lambda d: chart.pod_of(d).update(hostNetwork=True), ["test-assay: hostNetwork"]),
    "token": (lambda d: chart.pod_of(d).pop("automountServiceAccountToken"), ["test-assay: mounts a token"]),
    "capabilities": (lambda d: chart.pod_of(d)["containers"][0]["securityContext"].pop("capabilities"), ["test-assay/server: keeps capabilities"]),
    "writable image": (lambda d: chart.pod_of(d)["containers"][0]["securityContext"].update(readOnlyRootFilesystem=False),
                       ["test-assay/server: can write its image"]),
    "privileges": (lambda d: chart.pod_of(d)["containers"][0]["securityContext"].update(privileged=True), ["test-assay/server: may gain privileges"]),
    "label": (lambda d: chart.one(d, "ServiceAccount")["metadata"]["labels"].pop("helm.sh/chart"), ["ServiceAccount test-assay: no label helm.sh/chart"]),
    "long name": (lambda d: chart.one(d, "NetworkPolicy")["metadata"].update(name="a" * 64), [f"NetworkPolicy {'a' * 64}: 64 characters"]),
    "namespace": (lambda d: chart.one(d, "NetworkPolicy")["metadata"].pop("namespace"), ["NetworkPolicy test-assay: in namespace None"]),
    "selector": (lambda d: chart.one(d, "Service", "-headless")["spec"]["selector"].update({"app.kubernetes.io/instance": "b"}),
                 ["Service test-assay-headless: selects other pods"]),
    "selects by version": (lambda d: chart.one(d, "Service", "-headless")["spec"]["selector"].update({"app.kubernetes.io/version": "0.1.0"}),
                           ["Service test-assay-headless: selects by ['app.kubernetes.io/component', 'app.kubernetes.io/instance', "
                            "'app.kubernetes.io/name', 'app.kubernetes.io/version']"]),
    "liveness of models": (lambda d: chart.pod_of(d)["containers"][0]["livenessProbe"]["grpc"].update(service="ready"),
                           ["livenessProbe: {'port': 8004, 'service': 'ready'}"]),
    "deadline": (lambda d: chart.one(d, "Deployment")["spec"].update(progressDeadlineSeconds=600),
                 ["the rollout's deadline is below the 1800 s of the startup probe"]),
    "ports": (lambda d: chart.one(d, "Service", "-headless")["spec"]["ports"][0].update(port=9), ["Service test-assay-headless: grpc"]),
    "grace": (lambda d: chart.pod_of(d).update(terminationGracePeriodSeconds=49), ["grace 49 s, preStop 15 s, needed 50 s"]),
    "mount": (lambda d: chart.pod_of(d)["volumes"].append({"name": "more", "emptyDir": {}}),
              ["volumes ['cache', 'config', 'more', 'tmp'], mounts ['cache', 'config', 'tmp']"]),
    "replicas": (lambda d: chart.one(d, "Deployment")["spec"].pop("replicas"), ["neither replicas nor an autoscaler"]),
    "secret": (lambda d: d.append({"kind": "Secret", "metadata": {**chart.one(d, "NetworkPolicy")["metadata"], "name": "s"}}), ["Secret s"]),
    "checksum": (lambda d: chart.one(d, "Deployment")["spec"]["template"]["metadata"].pop("annotations"), ["no checksum of the configuration"]),
    "open policy": (lambda d: chart.one(d, "NetworkPolicy")["spec"]["ingress"][0].pop("from"),
                    ["NetworkPolicy: ports [{'protocol': 'TCP', 'port': 8001}] from anywhere"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_golden_rules_catch(name):
    change, expected = BROKEN[name]
    documents = chart.render_variant("default")
    change(documents)
    assert golden_rules.problems(documents) == expected


def test_golden_rules_catch_a_secret_in_a_config_map_and_a_budget_that_blocks():
    documents = chart.render_variant("cpu-ha")
    chart.one(documents, "ConfigMap", "test-assay")["data"]["config.yaml"] += "x: -----BEGIN\n"
    chart.one(documents, "PodDisruptionBudget")["spec"] = {"minAvailable": 3, "selector": chart.one(documents, "PodDisruptionBudget")["spec"]["selector"]}
    assert [problem.split(":")[0] for problem in golden_rules.problems(documents)] == ["a disruption budget that may block", "ConfigMap test-assay"]
    documents = chart.render_variant("hpa")
    chart.one(documents, "Deployment")["spec"]["replicas"] = 2
    assert golden_rules.problems(documents) == ["replicas and an autoscaler"]


@pytest.mark.parametrize("kind,change,problem", [
    ("Deployment", lambda d: d["spec"].update(replica=1), "Additional properties are not allowed ('replica' was unexpected)"),
    ("Deployment", lambda d: d["spec"]["template"]["spec"]["containers"][0]["ports"][0].update(containerPort="x"), "'x' is not of type 'integer'"),
    ("ServiceMonitor", lambda d: d["spec"]["endpoints"][0].update(intervall="1s"), "Additional properties are not allowed ('intervall' was unexpected)"),
    ("PodDisruptionBudget", lambda d: d.update(apiVersion="policy/v1beta1"), "policy/v1beta1 has no such kind in 1.35"),
])
def test_schemas_catch(kind, change, problem):
    documents = chart.render_variant("cpu-ha", "1.35")
    before = copy.deepcopy(documents)
    change(chart.one(documents, kind))
    assert documents != before
    assert [line.endswith(problem) for line in chart.schema_problems(documents, "1.35")] == [True]
