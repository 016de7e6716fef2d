"""Values: every one is in the schema and in the README, what the server knows is what the chart lets through, bad values are refused
with a message that names them."""

import json
import re
import subprocess
import sys

import jsonschema
import pytest
import yaml

import chart

sys.path.insert(0, str(chart.ROOT / "helm"))

import make_readme  # noqa: E402

VALUES = (chart.CHART / "values.yaml").read_text()
SCHEMA = json.loads((chart.CHART / "values.schema.json").read_text())
# Set by other values of the chart, so that they agree with the rest of the pod; `config` does not take them.
OWNED = {"listen", "grpc_port", "http_port", "admin_port", "admin_listen", "admin", "health_port", "model_repository", "cache_dir", "policy",
         "strict_readiness", "drain_timeout", "tls", "auth"}


def resolved(schema):
    return SCHEMA["$defs"][schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema


def in_schema(schema, path):
    """Whether a value may stand at the path."""
    for key in path.split("."):
        schema = resolved(schema)
        rest = schema.get("additionalProperties", True)
        if key in schema.get("properties", {}):
            schema = schema["properties"][key]
        elif isinstance(rest, dict):
            schema = rest
        elif rest is False or "properties" in schema:
            return False
        else:
            return True
    return True


def closed_maps(schema, path=()):
    """Paths of all maps of the schema, which take known keys only."""
    schema = resolved(schema)
    if "properties" not in schema:
        return []
    inner = [found for key, part in schema["properties"].items() for found in closed_maps(part, (*path, key))]
    return [path, *inner]


def keys_of(config, path=""):
    return make_readme.leaves(config, path)


def test_every_value_is_in_the_schema():
    missing = [leaf for leaf in make_readme.leaves(yaml.safe_load(VALUES)) if not in_schema(SCHEMA, leaf)]
    assert missing == []
    assert not in_schema(SCHEMA, "image.repo") and not in_schema(SCHEMA, "metrics.dashboards.label")


def test_the_schema_has_no_value_that_values_yaml_lacks():
    values = yaml.safe_load(VALUES)
    for path in closed_maps(SCHEMA):
        if not path or path[0] in ("config", "resources", "global") or path[-1] == "resources":
            continue
        for key in resolved_at(path)["properties"]:
            assert has(values, (*path, key)), ".".join((*path, key))


def resolved_at(path):
    schema = SCHEMA
    for key in path:
        schema = resolved(resolved(schema)["properties"][key])
    return schema


def has(values, path):
    for key in path:
        if not isinstance(values, dict) or key not in values:
            return False
        values = values[key]
    return True


def test_the_schema_is_one_and_closed():
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    maps = closed_maps(SCHEMA)
    assert len(maps) > 30
    assert [path for path in maps if resolved_at(path).get("additionalProperties") is not False] == []


def test_no_value_may_be_taken_away():
    """With `null` helm deletes a default, and the templates would find nothing in its place."""
    for path in closed_maps(SCHEMA):
        if path[:1] != ("config",) and path[-1:] != ("resources",):
            schema = resolved_at(path)
            assert set(schema["required"]) == set(schema["properties"]) - {"global"}, path


def test_an_unknown_key_is_refused_everywhere():
    validator = jsonschema.Draft7Validator(SCHEMA)
    for path in closed_maps(SCHEMA):
        value = {"unknown": 1}
        for key in reversed(path):
            value = {key: value}
        messages = [error.message for error in validator.iter_errors(value)]
        assert any("'unknown' was unexpected" in message for message in messages), path


def test_the_readme_is_up_to_date_and_complete():
    readme = (chart.CHART / "README.md").read_text()
    assert readme == make_readme.renewed(readme, VALUES)
    assert make_readme.undocumented(VALUES) == []


def test_the_readme_notices_a_changed_comment_and_a_value_without_one():
    text = "a:\n  # -- One\n  b: 1\n  c: 2\n# -- All\nd: {e: [1]}\n"
    assert make_readme.documented(text) == [("a.b", "One"), ("d", "All")]
    assert make_readme.undocumented(text) == ["a.c"]
    assert make_readme.table(text).splitlines()[2:] == ["| `a.b` | `1` | One |", '| `d` | `{"e": [1]}` | All |']


def test_config_takes_what_the_server_takes():
    """Whatever deploy/example.yaml lists is set by the chart, or may be set in `config`."""
    server = yaml.safe_load((chart.ROOT / "deploy" / "example.yaml").read_text())
    unknown = [key for key in keys_of(server) if key.split(".")[0] not in OWNED and not in_schema(SCHEMA, f"config.{key}")]
    assert unknown == []
    assert set(SCHEMA["properties"]["config"]["properties"]) & OWNED == set()
    validator = jsonschema.Draft7Validator(SCHEMA)
    defaults = {key: value for key, value in server.items() if key not in OWNED}
    values = yaml.safe_load(VALUES) | {"config": defaults}
    assert [error.message for error in validator.iter_errors(values)] == []


@pytest.mark.parametrize("name", chart.variants())
def test_the_server_takes_the_configuration(name, tmp_path):
    server = chart.server_binary()
    config = chart.config_of(chart.render_variant(name))
    for section, key in ((config, "model_repository"), (config, "policy"), (config, "cache_dir"), (config, "evaluation_text"),
                         (config["auth"], "tokens"), *((config.get("tls", {}), key) for key in ("certificate", "key", "client_ca"))):
        section.pop(key, None)  # paths of the container
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run([server, "--config", tmp_path / "config.yaml", "--check-config"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What the schema says of numbers, their ends are; of the rest, what lies at the ends of what the server takes.
PROBES = {"serverDuration": ["576h", "577h", "575h59m59.999s", "575.999h", "9999m", "999999s", "575h9999m", "-1s", "1 s"],
          "bytes": ["1KiB", "1 GiB", "99999TiB", "16777216TiB", "9" * 17, "9" * 21, "1GB", "-1"],
          "max_message_size": ["0", "1", "2047MiB", "2048MiB", "1GiB", "2GiB", "1TiB", "1KiB"],
          "max_header_size": ["0", "1023", "1024", "1KiB", "0KiB"], "handshake_timeout": ["0", "0s", "0.0000000001s", "1ms", "577h"]}


def config_leaves(schema, path=()):
    for key, part in schema["properties"].items():
        if "properties" in part:
            yield from config_leaves(part, (*path, key))
        else:
            yield (*path, key), part


def probes(name, schema):
    """Values at the ends of what the schema takes of one key, and just beyond."""
    if name in PROBES:
        return PROBES[name]
    if schema.get("type") in ("integer", "number"):
        low, high = schema["minimum"], schema["maximum"]
        beyond = (low - 1, high + 1) if schema["type"] == "integer" else (low / 2 if low else -0.5, high * 1.001)
        return [low, high, *beyond]
    if "enum" in schema:
        return [*filter(None, schema["enum"])]
    return PROBES.get(schema.get("$ref", "").rsplit("/", 1)[-1], [])


@pytest.mark.parametrize("path,schema", [*config_leaves(SCHEMA["properties"]["config"])], ids=lambda part: ".".join(part) if isinstance(part, tuple) else "")
def test_config_takes_the_values_that_the_server_takes(path, schema, tmp_path):
    """At the ends of each setting the schema and the server are of one mind."""
    server = chart.server_binary()
    validator = jsonschema.Draft7Validator({**schema, "$defs": SCHEMA["$defs"]})
    for value in probes(path[-1], schema):
        config = value
        for key in reversed(path):
            config = {key: config}
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        done = subprocess.run([server, "--config", tmp_path / "config.yaml", "--check-config"], capture_output=True, text=True)
        assert (done.returncode == 0) == validator.is_valid(value), f"{value!r}: {done.stderr}"


def test_the_choices_of_config_are_the_servers():
    """But for gpu.profile, which the server looks up when it starts."""
    server, compared = chart.server_binary(), 0
    for path, schema in config_leaves(SCHEMA["properties"]["config"]):
        if "enum" in schema and path != ("gpu", "profile"):
            flag = "--" + "-".join(path).replace("_", "-")
            said = subprocess.run([server, "--check-config", flag, "?"], capture_output=True, text=True).stderr
            assert said.strip().rpartition(" is not one of ")[2].split(", ") == schema["enum"], said
            compared += 1
    assert compared == 3


# Values that are settings of the server outside of `config`: what to try where the schema has no ends, and the server's key.
DIRECT = {"network.grpcPort": (None, "grpc_port"), "network.httpPort": (None, "http_port"), "network.adminPort": (None, "admin_port"),
          "network.healthPort": (None, "health_port"), "drain.timeoutSeconds": (None, "drain_timeout"),
          "auth.maxConcurrent": (None, "auth.max_concurrent"), "auth.tokensPerMinute": (None, "auth.tokens_per_minute"),
          "tls.reloadInterval": (PROBES["serverDuration"], "tls.reload_interval"),
          "network.listen": (["0.0.0.0", "255.255.255.255", "::", "fe80::1", "::ffff:1.2.3.4", "1.2.3", "1.2.3.256", ":::", "1:2", "fe80::1%eth0"], "listen")}


@pytest.mark.parametrize("path", DIRECT)
def test_the_server_takes_what_its_own_values_take(path, tmp_path):
    server, keys = chart.server_binary(), path.split(".")
    schema, (tried, server_key) = resolved(resolved_at(keys)), DIRECT[path]
    validator = jsonschema.Draft7Validator({**schema, "$defs": SCHEMA["$defs"]}, format_checker=jsonschema.Draft7Validator.FORMAT_CHECKER)
    tried = tried or probes(keys[-1], schema)
    taken = [value for value in tried if validator.is_valid(value)]
    assert taken and len(taken) < len(tried)
    for value in taken:
        values = {"tls": {"enabled": True, "existingSecret": "a"}}
        values.setdefault(keys[0], {})[keys[1]] = value
        config = chart.config_of(chart.render_values(values))
        config.pop("cache_dir")
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
        done = subprocess.run([server, "--config", tmp_path / "config.yaml", "--check-config"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        for key in server_key.split("."):
            config = config[key]
        assert str(config) == (f"{value}s" if path == "drain.timeoutSeconds" else str(value))


# Values -> a part of the message. By the schema, then by the checks of _checks.tpl.
BAD = [
    ({"replica": 2}, "'replica' not allowed"),
    ({"replicas": 0}, "/replicas': minimum"),
    ({"replicas": "two"}, "/replicas': got string, want integer"),
    ({"profile": "tpu"}, "/profile': value must be one of 'cpu', 'gpu'"),
    ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy': value must be one of"),
    ({"image": {"digest": "sha256:abc"}}, "/image/digest': 'sha256:abc' does not match"),
    ({"image": {"repository": "Assay"}}, "/image/repository': 'Assay' does not match"),
    ({"image": {"pullSecrets": ["site"]}}, "/image/pullSecrets/0': got string, want object"),
    ({"fullnameOverride": "Not_A_Name"}, "/fullnameOverride': 'Not_A_Name' does not match"),
    ({"network": {"grpcPort": 70000}}, "/network/grpcPort': maximum"),
    ({"network": {"listen": "localhost"}}, "/network/listen': 'localhost' is not valid ipv4"),
    ({"network": {"listen": "1.2.3"}}, "/network/listen': '1.2.3' is not valid ipv4"),
    ({"network": {"listen": ":::"}}, "/network/listen': ':::' is not valid ipv6"),
    ({"network": {"listen": "fe80::1%eth0"}}, "/network/listen': 'fe80::1%eth0'"),
    ({"fullnameOverride": "1abc"}, "/fullnameOverride': '1abc' does not match"),
    ({"commonLabels": {"not a key": "a"}}, "'not a key' does not match"),
    ({"podLabels": {"a": "not a value"}}, "/podLabels/a': 'not a value' does not match"),
    ({"commonLabels": {"a": "b" * 64}}, "/commonLabels/a'"),
    ({"config": None}, "missing property 'config'"),
    ({"network": None}, "missing property 'network'"),
    ({"models": {"download": None}}, "missing property 'download'"),
    ({"tolerations": None}, "missing property 'tolerations'"),
    ({"nodeSelector": {"a": "not a value"}}, "/nodeSelector/a': 'not a value' does not match"),
    ({"metrics": {"serviceMonitor": {"labels": {"a": "not a value"}}}}, "/metrics/serviceMonitor/labels/a': 'not a value' does not match"),
    ({"metrics": {"serviceMonitor": {"interval": "1m1h"}}}, "/metrics/serviceMonitor/interval': '1m1h' does not match"),
    ({"podSecurityContext": {"runAsUser": 0}}, "/podSecurityContext/runAsUser': minimum"),
    ({"auth": {"key": ".."}}, "/auth/key': '..' does not match"),
    ({"auth": {"key": "."}}, "/auth/key': '.' does not match"),
    ({"models": {"source": "s3"}}, "/models/source': value must be one of"),
    ({"models": {"download": {"files": [{"url": "ftp://a/b", "sha256": "0" * 64, "path": "a"}]}}}, "/url': 'ftp://a/b' does not match"),
    ({"models": {"download": {"files": [{"url": "http://a/b", "path": "a"}]}}}, "missing property 'sha256'"),
    ({"models": {"download": {"files": [{"url": "http://a/b", "sha256": "0" * 64, "path": "../a"}]}}}, "/path': '../a' does not match"),
    ({"models": {"download": {"files": [{"url": "http://a/'b", "sha256": "0" * 64, "path": "a"}]}}}, "/url': 'http://a/\\'b' does not match"),
    ({"models": {"image": {"reference": "models:latest"}}}, "/models/image/reference': 'models:latest' does not match"),
    ({"models": {"hostPath": {"path": "models"}}}, "/models/hostPath/path': 'models' does not match"),
    ({"artifactCache": {"type": "s3"}}, "/artifactCache/type': value must be one of"),
    ({"artifactCache": {"pvc": {"size": "big"}}}, "/artifactCache/pvc/size': 'big' does not match"),
    ({"artifactCache": {"pvc": {"accessMode": "RWX"}}}, "/artifactCache/pvc/accessMode': value must be one of"),
    ({"admission": {"timeoutSeconds": 1}}, "/admission/timeoutSeconds': minimum"),
    ({"drain": {"marginSeconds": 1}}, "/drain/marginSeconds': minimum"),
    ({"drain": {"preStopSeconds": 0}}, "/drain/preStopSeconds': minimum"),
    ({"gpu": {"resourceName": "gpu"}}, "/gpu/resourceName': 'gpu' does not match"),
    ({"gpu": {"minComputeMajor": 8.6}}, "/gpu/minComputeMajor': got number, want integer"),
    ({"resources": {"limits": {"memory": "4Gi"}}, "test": {"resources": {"requests": {"cpu": "1 core"}}}}, "/test/resources/requests/cpu'"),
    ({"config": {"grpc_port": 9000}}, "'grpc_port' not allowed"),
    ({"config": {"tls": {"key": "/x"}}}, "'tls' not allowed"),
    ({"config": {"drift": {"rate": 2}}}, "/config/drift/rate': maximum"),
    ({"config": {"grpc": {"max_connection_age": "5 minutes"}}}, "/config/grpc/max_connection_age'"),
    ({"config": {"engine": {"kv_cache": "2GB"}}}, "/config/engine/kv_cache'"),
    ({"config": {"log_level": "verbose"}}, "/config/log_level': value must be one of"),
    ({"tls": {"enabled": "yes"}}, "/tls/enabled': got string, want boolean"),
    ({"service": {"type": "ExternalName"}}, "/service/type': value must be one of"),
    ({"autoscaling": {"kind": "vpa"}}, "/autoscaling/kind': value must be one of"),
    ({"autoscaling": {"kvCachePercent": 0.8}}, "/autoscaling/kvCachePercent'"),
    ({"podDisruptionBudget": {"maxUnavailable": 0}}, "/podDisruptionBudget/maxUnavailable'"),
    ({"podDisruptionBudget": {"minAvailable": 1}}, "'minAvailable' not allowed"),
    ({"commonLabels": {"a": 1}}, "/commonLabels/a': got number, want string"),
    ({"commonLabels": {"app.kubernetes.io/name": "a"}}, "/commonLabels/app.kubernetes.io~1name': false schema"),
    ({"artifactCache": {"quantizeOnce": {"models": ["a/../../etc"]}}}, "/artifactCache/quantizeOnce/models/0': 'a/../../etc' does not match"),
    ({"extraEnv": [{"value": "a"}]}, "missing property 'name'"),
    ({"probes": {"startup": {"service": "smollm2"}}}, "/probes/startup/service': value must be one of"),
    ({"image": {"tag": "latest"}}, "image.tag is `latest`"),
    ({"extraEnv": [{"name": "ASSAY_HEALTH_PORT", "value": "9"}]}, "extraEnv: ASSAY_HEALTH_PORT would not fit"),
    ({"extraEnv": [{"name": "ASSAY_TLS_KEY", "value": "/x"}]}, "extraEnv: ASSAY_TLS_KEY would not fit"),
    ({"models": {"source": "pvc"}}, "set models.pvc.existingClaim"),
    ({"models": {"source": "download"}}, "set models.download.files"),
    ({"models": {"source": "image"}}, "set models.image.reference"),
    ({"models": {"source": "hostPath"}}, "set models.hostPath.path"),
    ({"replicas": 2, "artifactCache": {"type": "pvc", "pvc": {"accessMode": "ReadWriteOnce"}}}, "or set artifactCache.sharedOnOneNode"),
    ({"replicas": 2, "artifactCache": {"type": "pvc", "pvc": {"accessMode": "ReadWriteOncePod"}}}, "use ReadWriteMany"),
    ({"artifactCache": {"type": "pvc", "pvc": {"accessMode": "ReadWriteOnce"}}}, "set strategy.maxSurge to 0"),
    ({"artifactCache": {"quantizeOnce": {"enabled": True}}}, "set artifactCache.type to pvc"),
    ({"artifactCache": {"type": "pvc", "quantizeOnce": {"enabled": True}}}, "set models.source and artifactCache.quantizeOnce.models"),
    ({"models": {"source": "pvc", "pvc": {"existingClaim": "a"}}, "extraEnv": [{"name": "ASSAY_MEMORY_LIMIT", "value": "1GiB"}],
      "artifactCache": {"type": "pvc", "quantizeOnce": {"enabled": True, "models": ["a"]}}}, "ASSAY_MEMORY_LIMIT in extraEnv is for the server alone"),
    ({"tls": {"enabled": True}}, "set tls.existingSecret or tls.certManager.enabled"),
    ({"tls": {"enabled": True, "existingSecret": "a", "certManager": {"enabled": True}}}, "choose one"),
    ({"tls": {"enabled": True, "certManager": {"enabled": True}}}, "set tls.certManager.issuerRef.name"),
    ({"tls": {"mutual": {"enabled": True}}}, "without tls.enabled"),
    ({"tls": {"enabled": True, "existingSecret": "a", "mutual": {"enabled": True}}}, "set tls.mutual.caSecret"),
    ({"tls": {"enabled": True, "existingSecret": "a"}, "metrics": {"serviceMonitor": {"enabled": True}}}, "set metrics.serviceMonitor.tlsConfig"),
    ({"tls": {"enabled": True, "existingSecret": "a", "mutual": {"enabled": True, "caSecret": "b"}},
      "metrics": {"serviceMonitor": {"enabled": True, "tlsConfig": {"serverName": "a"}}}}, "set cert and keySecret"),
    ({"auth": {"existingSecret": "a"}, "metrics": {"serviceMonitor": {"enabled": True}}}, "set metrics.serviceMonitor.bearerSecret.name"),
    ({"service": {"type": "LoadBalancer"}}, "service.type is LoadBalancer without TLS"),
    ({"autoscaling": {"kind": "hpa", "minReplicas": 5, "maxReplicas": 4}}, "autoscaling.maxReplicas is below"),
    ({"autoscaling": {"kind": "keda"}}, "set autoscaling.keda.prometheusAddress"),
    ({"strategy": {"maxSurge": 0}}, "a rollout could never begin"),
    ({"grpcRoute": {"enabled": True}}, "set grpcRoute.parentRefs"),
    ({"service": {"type": "NodePort", "allowPlaintext": True}}, "networkPolicy.clients lets pods in alone"),
    ({"tls": {"enabled": True, "certManager": {"enabled": True, "issuerRef": {"name": "a"}, "duration": "24h", "renewBefore": "1440m"}}},
     "tls.certManager.duration is 24h and renewBefore 1440m"),
    ({"tls": {"enabled": True, "certManager": {"enabled": True, "issuerRef": {"name": "a"}, "duration": "30m", "renewBefore": "10m"}}}, "at least 1h"),
    ({"metrics": {"serviceMonitor": {"interval": "1m", "scrapeTimeout": "60001ms"}}}, "scrapeTimeout 60001ms is above interval 1m"),
    ({"network": {"httpPort": 8001}}, "are the same"),
]


@pytest.mark.parametrize("values,message", BAD, ids=[f"{number:02d}-{re.sub(r'[^a-z]+', '-', message.lower())[:40]}"
                                                     for number, (_, message) in enumerate(BAD)])
def test_a_bad_value_is_refused_with_a_message(values, message):
    with pytest.raises(chart.Refused) as refusal:
        chart.render_values(values)
    text = str(refusal.value)
    assert message in text, text
    assert "nil pointer" not in text and "error calling include" not in text.split(message)[1]


def test_the_values_beside_the_bad_ones_are_good():
    """The same values, put right: it is the bad part that is refused."""
    good = {"replicas": 2, "strategy": {"maxSurge": 0, "maxUnavailable": 1},
            "artifactCache": {"type": "pvc", "sharedOnOneNode": True, "pvc": {"accessMode": "ReadWriteOnce"}},
            "service": {"type": "LoadBalancer", "allowPlaintext": True}, "networkPolicy": {"clients": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
            "network": {"listen": "0.0.0.0"}, "fullnameOverride": "abc1", "commonLabels": {"example.org/a.b": "b" * 63, "a": ""}, "auth": {"key": "..a"[1:]},
            "podSecurityContext": {"runAsUser": 1}, "metrics": {"serviceMonitor": {"interval": "1m", "scrapeTimeout": "60000ms"}},
            "autoscaling": {"kind": "hpa", "minReplicas": 4, "maxReplicas": 4},
            "config": {"drift": {"rate": 1}, "engine": {"kv_cache": "2GiB"}, "grpc": {"max_connection_age": "5m30s"}},
            "podDisruptionBudget": {"maxUnavailable": "25%"}, "resources": {"requests": {"cpu": 1.5, "memory": "1Gi"}, "limits": {"memory": "1Gi"}}}
    assert chart.schema_problems(chart.render_values(good), chart.MINORS[-1]) == []
