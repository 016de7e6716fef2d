"""What lies on the volumes of models and of the cache that no server should stumble over: pipes, links, and other servers' files."""

import os
import shutil
import subprocess
import threading

import grpc
import pytest

from conftest import BUILD, STORIES, Assay, Server, wait_until


def answer(server):
    messages = Assay(server.address).generate("Once upon a time", max_tokens=8, temperature=0)
    return "".join(message.text for message in messages)


# ---- the repository

@pytest.fixture
def models(tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    shutil.copy(STORIES, folder / "stories260k.gguf")
    return folder


@pytest.fixture
def serve(tmp_path, models):
    servers = []

    def start(*flags):
        servers.append(Server(tmp_path, "--model-repository", models, "--strict-readiness", "false", *flags))
        return servers[-1].wait_ready()

    yield start
    for started in servers:
        started.stop()


def test_a_pipe_among_the_models_holds_up_nobody(serve, models):
    """Opened as files are by default, it waits for a writer for ever, and with it all models behind it, and the end."""
    (models / "apipe" / "1").mkdir(parents=True)
    os.mkfifo(models / "apipe" / "1" / "model.gguf")
    os.mkfifo(models / "bare.gguf")
    server = serve()
    wait_until(lambda: all(any(f"{name}:1" in line and "not a regular file" in line for line in server.stderr) for name in ("apipe", "bare")))
    assert answer(server)
    server.terminate()
    assert server.wait() == 0


def test_links_of_the_repository_do_not_lead_out_where_paths_are_confined(serve, models, tmp_path):
    """`--model-roots` confines; without it, and on loopback without tokens, every path may be admitted anyway."""
    outside = tmp_path / "elsewhere"
    outside.mkdir()
    shutil.copy(STORIES, outside / "model.gguf")
    (models / "linked.gguf").symlink_to(outside / "model.gguf")
    (models / "inside.gguf").symlink_to("stories260k.gguf")
    (tmp_path / "other").mkdir()

    def states(server):
        client = Assay(server.address)
        return {model.name: model.state for model in client.call("ListModels", client.message("ListModelsRequest")).models}

    confined = serve("--model-roots", tmp_path / "other")
    assert any("linked" in line and "leads out of model_repository" in line and str(models / "linked.gguf") in line for line in confined.stderr)
    assert states(confined) == {"stories260k": "SERVING", "inside": "SERVING"}
    load = Assay(confined.address).channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
    with pytest.raises(grpc.RpcError) as refused:
        load(b"\x12\x06linked", timeout=30)  # model_name
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED and "model_roots" in refused.value.details()
    allowed = serve("--model-roots", outside)
    assert states(allowed)["linked"] == "SERVING"
    free = serve()
    assert states(free)["linked"] == "SERVING"


# ---- the cache, shared by containers

CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")


def test_two_containers_whose_server_is_process_1_share_a_cache(models, tmp_path):
    """Names of files that are being written must not hang on the process's number."""
    if subprocess.run([*CONTAINER, "true"], capture_output=True, timeout=60).returncode != 0:
        pytest.skip("no namespaces of processes may be made here (unshare --pid)")
    (tmp_path / "artifacts" / "artifacts").mkdir(parents=True)
    # What servers that named them so left when they were killed.
    for left in ("checkpoints.json.tmp.1.0", "ladders.json.tmp.1.1"):
        (tmp_path / "artifacts" / left).write_text("{")
    servers = []
    try:
        def start():
            servers.append(Server(tmp_path, "--model-repository", models, program=(*CONTAINER, BUILD / "server" / "assay-server")))

        starts = [threading.Thread(target=start) for _ in range(2)]
        for one in starts:
            one.start()
        for one in starts:
            one.join()
        for server in servers:
            server.wait_ready()
            assert not any("File exists" in line or "cannot remember" in line for line in server.stderr), server.log()
        assert answer(servers[0]) == answer(servers[1])
    finally:
        for server in servers:
            server.stop()
    cache = tmp_path / "artifacts"
    assert (cache / "checkpoints.json").is_file()
    assert not [path for path in cache.rglob("*.tmp.*") if ".tmp.1." not in path.name]
    artifacts = list((cache / "artifacts").iterdir())
    assert artifacts and all((path / "manifest.json").is_file() for path in artifacts)
