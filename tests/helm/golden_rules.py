"""What holds for every rendering of the chart, whatever the values. `problems(documents)` says where it does not."""

import re

from chart import NAMESPACE, config_of, one, pod_of

SELECTOR = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/component"}
LABELS = SELECTOR | {"app.kubernetes.io/version", "app.kubernetes.io/part-of", "app.kubernetes.io/managed-by", "helm.sh/chart"}
# Pod Security "restricted" allows these kinds of volumes; `image` is newer than its text and as harmless.
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret", "image"}
SECRET = re.compile(r"-----BEGIN|password|bearer|authorization|(?<![\w/])[0-9a-f]{64}(?!\w)", re.IGNORECASE)


def seconds(text):
    return int(re.fullmatch(r"(\d+)s", text)[1])


def pods(documents):
    """[(name, spec)]: the server's and the test's."""
    templates = [(d["metadata"]["name"], d["spec"]["template"]["spec"]) for d in documents if d["kind"] == "Deployment"]
    return templates + [(d["metadata"]["name"], d["spec"]) for d in documents if d["kind"] == "Pod"]


def containers(documents):
    return [(f"{name}/{c['name']}", c) for name, pod in pods(documents) for c in pod.get("initContainers", []) + pod["containers"]]


def image_problems(documents):
    found = []
    for name, container in containers(documents):
        image = container["image"]
        if image.endswith(":latest") or not re.search(r"(:[\w.-]+|@sha256:[0-9a-f]{64})$", image):
            found.append(f"{name}: image {image} has no version")
    return found


def resource_problems(documents):
    wanted = (("requests", "cpu"), ("requests", "memory"), ("limits", "memory"))
    return [f"{name}: no {kind}.{what}" for name, container in containers(documents) for kind, what in wanted
            if what not in container.get("resources", {}).get(kind, {})]


def security_problems(documents):
    found = []
    for name, pod in pods(documents):
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0:
            found.append(f"{name}: may run as root")
        if security.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            found.append(f"{name}: no seccomp profile")
        found += [f"{name}: {key}" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
        if pod.get("automountServiceAccountToken") is not False:
            found.append(f"{name}: mounts a token")
        for volume in pod.get("volumes", []):
            found += [f"{name}: volume {kind}" for kind in set(volume) - {"name"} - VOLUMES]
    for name, container in containers(documents):
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
            found.append(f"{name}: may gain privileges")
        if security.get("readOnlyRootFilesystem") is not True:
            found.append(f"{name}: can write its image")
        if security.get("capabilities") != {"drop": ["ALL"]}:
            found.append(f"{name}: keeps capabilities")
    return found


def label_problems(documents):
    found = []
    for document in documents:
        metadata = document["metadata"]
        name = f"{document['kind']} {metadata['name']}"
        if metadata["labels"].get("app.kubernetes.io/name") == "extra":  # the user's own
            continue
        found += [f"{name}: no label {label}" for label in sorted(LABELS - set(metadata["labels"]))]
        if len(metadata["name"]) > 63:
            found.append(f"{name}: {len(metadata['name'])} characters")
        if metadata.get("namespace") != NAMESPACE:
            found.append(f"{name}: in namespace {metadata.get('namespace')}")
    return found


def selector_problems(documents):
    """All selectors are the three labels that no version of the chart may change, and choose the server's pods."""
    deployment = one(documents, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = {"Deployment": deployment["spec"]["selector"]["matchLabels"]}
    for document in documents:
        spec, name = document.get("spec", {}), f"{document['kind']} {document['metadata']['name']}"
        if document["kind"] == "Service":
            selectors[name] = spec["selector"]
        elif document["kind"] == "PodDisruptionBudget":
            selectors[name] = spec["selector"]["matchLabels"]
        elif document["kind"] == "NetworkPolicy":
            selectors[name] = spec["podSelector"]["matchLabels"]
    found = [f"{name}: selects by {sorted(chosen)}" for name, chosen in selectors.items() if set(chosen) != SELECTOR]
    found += [f"{name}: selects other pods" for name, chosen in selectors.items() if not chosen.items() <= labels.items()]
    for document in documents:
        if document["kind"] == "ServiceMonitor":
            wanted = document["spec"]["selector"]["matchLabels"].items()
            services = [d for d in documents if d["kind"] == "Service" and wanted <= d["metadata"]["labels"].items()]
            ports = [port["name"] for service in services for port in service["spec"]["ports"]]
            if len(services) != 1 or document["spec"]["endpoints"][0]["port"] not in ports:
                found.append(f"ServiceMonitor: {len(services)} services with ports {ports}")
    return found


def probe_problems(documents):
    found = []
    server = pod_of(documents)["containers"][0]
    health = config_of(documents)["health_port"]
    for probe, service in (("startupProbe", None), ("readinessProbe", "ready"), ("livenessProbe", "")):
        grpc = server.get(probe, {}).get("grpc")
        if not grpc or grpc["port"] != health or (service is not None and grpc["service"] != service):
            found.append(f"{probe}: {grpc}")
    startup = server.get("startupProbe", {"failureThreshold": 0, "periodSeconds": 0})
    budget = startup["failureThreshold"] * startup["periodSeconds"]
    if budget > one(documents, "Deployment")["spec"]["progressDeadlineSeconds"]:
        found.append(f"the rollout's deadline is below the {budget} s of the startup probe")
    return found


def port_problems(documents):
    config, found = config_of(documents), []
    ports = {port["name"]: port["containerPort"] for port in pod_of(documents)["containers"][0]["ports"]}
    if ports != {"grpc": config["grpc_port"], "http": config["http_port"], "health": config["health_port"]}:
        found.append(f"ports {ports} are not those of config.yaml")
    if config["admin_listen"] != "127.0.0.1" or config["admin"] is not False:
        found.append("administration is reached from outside the pod")
    for document in documents:
        if document["kind"] == "Service":
            found += [f"Service {document['metadata']['name']}: {port['targetPort']}" for port in document["spec"]["ports"]
                      if port["targetPort"] not in ports or ports[port["targetPort"]] != port["port"]]
    return found


def drain_problems(documents):
    pod = pod_of(documents)
    sleep = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    needed = sleep + seconds(config_of(documents)["drain_timeout"]) + 5
    grace = pod["terminationGracePeriodSeconds"]
    return [] if sleep >= 1 and grace >= needed else [f"grace {grace} s, preStop {sleep} s, needed {needed} s"]


def mount_problems(documents):
    found, pod, config = [], pod_of(documents), config_of(documents)
    volumes = [volume["name"] for volume in pod["volumes"]]
    used = {mount["name"] for c in pod.get("initContainers", []) + pod["containers"] for mount in c["volumeMounts"]}
    if len(set(volumes)) != len(volumes) or used != set(volumes):
        found.append(f"volumes {sorted(volumes)}, mounts {sorted(used)}")
    mounts = {mount["mountPath"]: mount for mount in pod["containers"][0]["volumeMounts"]}
    paths = [config["cache_dir"], config.get("model_repository"), config.get("policy"), config["auth"].get("tokens")]
    paths += [config.get("tls", {}).get(key) for key in ("certificate", "key", "client_ca")]
    for path in filter(None, paths):
        if not any(f"{path}/".startswith(f"{mount}/") for mount in mounts):
            found.append(f"{path} is in no volume")
    found += [f"{path} is writable" for path, mount in mounts.items()
              if path not in ("/cache", "/tmp") and not mount.get("readOnly")]
    return found


def scaling_problems(documents):
    found = []
    scalers = [d for d in documents if d["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")]
    spec = one(documents, "Deployment")["spec"]
    if bool(scalers) == ("replicas" in spec):
        found.append("replicas and an autoscaler" if scalers else "neither replicas nor an autoscaler")
    least = [scaler["spec"].get("minReplicas", scaler["spec"].get("minReplicaCount")) for scaler in scalers] or [spec.get("replicas", 1)]
    for budget in (d["spec"] for d in documents if d["kind"] == "PodDisruptionBudget"):
        if "minAvailable" in budget or not budget.get("maxUnavailable"):
            found.append(f"a disruption budget that may block: {budget}, {least[0]} pods")
    return found


def secret_problems(documents):
    found = [f"Secret {d['metadata']['name']}" for d in documents if d["kind"] == "Secret"]
    for document in documents:
        if document["kind"] == "ConfigMap" and document["metadata"]["labels"].get("app.kubernetes.io/component") == "server":
            found += [f"ConfigMap {document['metadata']['name']}: {match[0]}" for text in document["data"].values()
                      for match in SECRET.finditer(text)]
    return found


def checksum_problems(documents):
    annotations = one(documents, "Deployment")["spec"]["template"]["metadata"].get("annotations", {})
    return [] if re.fullmatch(r"[0-9a-f]{64}", str(annotations.get("checksum/config"))) else ["no checksum of the configuration"]


def policy_problems(documents):
    found = []
    for document in documents:
        if document["kind"] == "NetworkPolicy":
            if sorted(document["spec"]["policyTypes"]) != ["Egress", "Ingress"]:
                found.append("NetworkPolicy: one direction is open")
            found += [f"NetworkPolicy: ports {rule.get('ports')} from anywhere" for rule in document["spec"]["ingress"] if not rule.get("from")]
    return found


RULES = (image_problems, resource_problems, security_problems, label_problems, selector_problems, probe_problems, port_problems,
         drain_problems, mount_problems, scaling_problems, secret_problems, checksum_problems, policy_problems)


def problems(documents):
    return [problem for rule in RULES for problem in rule(documents)]
