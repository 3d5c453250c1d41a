"""The same through S3: a server on this machine, real pushes and pulls."""

import hashlib
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import boto3
import pytest
from versioned import copy_of, only_when_asked, small, version

pytestmark = [pytest.mark.s3, pytest.mark.dvc, pytest.mark.dag, pytest.mark.slow, only_when_asked]

KEYS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_DEFAULT_REGION": "us-east-1"}
SIGNED = {"aws_access_key_id": "nobody", "aws_secret_access_key": "nothing", "region_name": "us-east-1"}


def make_bucket(address):
    with urllib.request.urlopen(urllib.request.Request(f"{address}/bucket", method="PUT"), timeout=10):
        pass


@pytest.fixture
def server(tmp_path):
    """An S3 server on loopback with an empty bucket: its address and a function that ends it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with open(tmp_path / "server.log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], stdout=log, stderr=log
        )
    try:
        for _ in range(300):
            try:
                make_bucket(address)
                break
            except (urllib.error.URLError, ConnectionError):
                assert process.poll() is None, (tmp_path / "server.log").read_text()
                time.sleep(0.1)
        yield address, process.terminate
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def cloud(fresh, tmp_path, server):
    """A recorded project whose default remote is the bucket."""
    project = version(small(fresh, tmp_path / "cloud"), push=False)
    project.dvc("remote", "add", "--default", "cloud", "s3://bucket/eigenloom")
    project.dvc("remote", "modify", "cloud", "verify", "true")
    project.git("commit", "--quiet", "--all", "--message", "A bucket")
    return project


def local_settings(project, address):
    """The endpoint belongs to this machine, not to the repository."""
    project.dvc("remote", "modify", "--local", "cloud", "endpointurl", address)


def test_push_clone_pull_edit_and_damage(cloud, server, tmp_path):
    address, end = server
    local_settings(cloud, address)
    assert "pushed" in cloud.dvc("push", **KEYS)
    assert "Everything is up to date" in cloud.dvc("push", **KEYS)

    clone = cloud.clone()
    local_settings(clone, address)
    clone.dvc("pull", **KEYS)
    assert clone.digests() == cloud.digests()
    assert clone.planned() == set()
    assert clone.changed() == set()

    clone.edit("config.yaml", "n_clusters: 16", "n_clusters: 15")
    clone.snakemake("--quiet", "all", "--", "all")
    clone.commit("Fifteen clusters")
    clone.dvc("push", **KEYS)
    clone.git("checkout", "--quiet", "HEAD~1")
    clone.dvc("checkout")
    assert clone.digests() == cloud.digests()
    assert clone.planned() == set()

    part = cloud.clone("part")
    local_settings(part, address)
    part.dvc("pull", "bases@tiny-scenes-pca", **KEYS)
    assert {path.split("/")[3] for path in part.digests()} == {"pca", "pca-random"}

    damaged = cloud.clone("damaged")
    local_settings(damaged, address)
    arrays = cloud.root / "artifacts/tiny-scenes/bases/pca/layer-01/arrays.safetensors"
    name = hashlib.md5(arrays.read_bytes(), usedforsecurity=False).hexdigest()
    client = boto3.client("s3", endpoint_url=address, **SIGNED)
    client.put_object(Bucket="bucket", Key=f"eigenloom/files/md5/{name[:2]}/{name[2:]}", Body=b"damaged")
    assert "failed to pull" in damaged.dvc("pull", status=1, **KEYS).lower()

    end()
    assert "failed" in damaged.dvc("pull", status=1, **KEYS).lower()


def test_keys_are_never_written_down(cloud, server):
    local_settings(cloud, server[0])
    written = (cloud.root / ".dvc/config").read_text() + (cloud.root / ".dvc/config.local").read_text()
    assert "secret" not in written
    assert "config.local" in cloud.run("git", "status", "--porcelain", "--ignored", "--untracked-files=all")
    copied = copy_of(cloud, cloud.root.parent.parent / "copied").clone()
    assert not (copied.root / ".dvc/config.local").exists()
