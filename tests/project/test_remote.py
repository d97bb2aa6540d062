"""What one user pushes to a remote, another one pulls or gets: from a folder, and over S3; and photos in a bucket."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support.projects import Repository

import dvc.api
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def s3_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A local S3 server with an empty `bucket`, and credentials for it in the environment."""
    import boto3
    from moto.server import ThreadedMotoServer

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))  # not the user's own
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)  # 0: a free port
    server.start()
    try:
        host, port = server.get_host_and_port()
        boto3.client("s3", endpoint_url=f"http://{host}:{port}").create_bucket(Bucket="bucket")
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """The URL of an empty remote, and the settings that it needs."""
    if request.param == "folder":
        return str(tmp_path / "remote"), {}
    return "s3://bucket/cats", {"endpointurl": request.getfixturevalue("s3_endpoint")}


def push(repository: Repository, url: str, settings: dict[str, str]) -> None:
    """Push the repository to an empty remote at `url`."""
    repository.dvc("remote", "add", "--default", "storage", url)
    for option, value in settings.items():
        repository.dvc("remote", "modify", "storage", option, value)
    repository.commit()
    repository.dvc("push")


def test_dvc_pulls_every_result_into_a_clone_that_then_has_nothing_to_run(
    remote: tuple[str, dict[str, str]], stand_ins: Repository, tmp_path: Path
) -> None:
    repository = stand_ins
    push(repository, *remote)

    repository.git("clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone")
    clone.dvc("pull")
    assert clone.results() == repository.results()
    assert (clone.root / "data/raw/train.zip").read_bytes() == (repository.root / "data/raw/train.zip").read_bytes()
    assert clone.has_clean_status()
    assert "Data and pipelines are up to date" in clone.dvc("repro")
    assert clone.git("status", "--porcelain") == ""


def test_dvc_gets_models_and_metrics_from_the_repository_without_a_clone(stand_ins: Repository, tmp_path: Path) -> None:
    """By path with `dvc get`, by name once `gto` has registered a version, and from Python."""
    repository = stand_ins
    push(repository, str(tmp_path / "remote"), {})
    model = (repository.root / "models/networks/resnet18.safetensors").read_bytes()
    metrics = (repository.root / "metrics/ensemble.json").read_text()
    repository.git("config", "user.name", "test")
    repository.git("config", "user.email", "test@localhost")
    subprocess.run(["gto", "register", "resnet18"], cwd=repository.root, env=repository.environment, check=True)
    assert repository.git("tag") == "resnet18@v0.0.1\n"

    elsewhere = Repository(tmp_path / "elsewhere")
    url = str(repository.root)
    elsewhere.dvc("get", url, "models/networks/resnet18.safetensors", "--out", "by path")
    assert (elsewhere.root / "by path").read_bytes() == model
    elsewhere.dvc("artifacts", "get", url, "resnet18", "--out", "by name")
    assert (elsewhere.root / "by name").read_bytes() == model
    with dvc.api.open("metrics/ensemble.json", repo=url) as file:
        assert json.load(file) == json.loads(metrics)
    assert dvc.api.read("models/networks/resnet18.safetensors", repo=url, mode="rb") == model


def test_photos_in_a_bucket_reach_every_clone_and_their_changes_rerun_prepare(
    s3_endpoint: str, stand_ins: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
    stand_ins.environment["AWS_ENDPOINT_URL"] = s3_endpoint
    import boto3
    import requests

    client = boto3.client("s3")
    photos = {"photos/cat/1.jpg": b"one", "photos/dog/2.jpg": b"two"}
    for key, content in photos.items():
        client.put_object(Bucket="bucket", Key=key, Body=content)
    stand_ins.dvc("import-url", "--no-download", "s3://bucket/photos", "data/raw/photos")
    assert not (stand_ins.root / "data/raw/photos").exists()
    stand_ins.params["prepare"]["source"] = "data/raw/photos"
    stand_ins.write_params()
    stand_ins.commit()

    stand_ins.git("clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone")
    clone.dvc("pull", "data/raw/photos")
    assert {name: (clone.root / "data/raw" / name).read_bytes() for name in photos} == photos
    assert clone.stages_run_by("repro", "prepare") == ["track_code", "prepare"]  # which looks for the photos
    client.put_object(Bucket="bucket", Key="photos/dog/2.jpg", Body=b"changed")
    clone.dvc("update", "data/raw/photos.dvc")
    assert clone.stages_run_by("repro", "prepare") == ["prepare"]

    requests.post(f"{s3_endpoint}/moto-api/reset-auth", data=b"0", headers={"Content-Type": "text/plain"})
    try:
        refused = clone.try_dvc("update", "data/raw/photos.dvc")
    finally:
        requests.post(f"{s3_endpoint}/moto-api/reset-auth", data=b"inf", headers={"Content-Type": "text/plain"})
    assert refused.returncode != 0
    assert "ERROR: unexpected error - Forbidden: An error occurred (403)" in refused.stderr
    assert (clone.root / "data/raw/photos/dog/2.jpg").read_bytes() == b"changed"
