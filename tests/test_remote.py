"""What one pushes to a remote, another one pulls: from a folder, and over S3."""

import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from conftest import Repository
from moto.server import ThreadedMotoServer


@pytest.fixture
def s3_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server on this computer with an empty `bucket`, and credentials for it in the environment."""
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


# `remote` stands first: `repository` takes over the environment, credentials and all.
def test_another_clone_pulls_every_result_and_has_nothing_to_run(
    remote: tuple[str, dict[str, str]], repository: Repository, tmp_path: Path
) -> None:
    url, settings = remote
    repository.dvc("remote", "add", "--default", "storage", url)
    for option, value in settings.items():
        repository.dvc("remote", "modify", "storage", option, value)
    repository.dvc("add", "data/raw/train.zip")
    repository.commit()
    repository.dvc("push")

    repository.git("clone", "--quiet", ".", str(tmp_path / "clone"))
    clone = Repository(tmp_path / "clone")
    clone.dvc("pull")
    assert clone.results() == repository.results()
    assert (clone.root / "data/raw/train.zip").read_bytes() == (repository.root / "data/raw/train.zip").read_bytes()
    assert clone.try_dvc("status", "--quiet").returncode == 0
    assert "Data and pipelines are up to date" in clone.dvc("repro")
    assert clone.git("status", "--porcelain") == ""
