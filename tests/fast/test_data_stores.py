"""Object stores through their own protocols: what is named is read, the credentials stay in the environment."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from store_servers import azure_server, fetched, google_server, s3_server

from command import Done, luthier, paper_model

SECRET = "store-secret-9f2c"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
"""That of every Azurite; it is in its manual."""


def lines(first: int, rows: int) -> bytes:
    made = [{"text": f"where is parcel number {n} of mine", "kind": "ab"[n % 2]} for n in range(first, first + rows)]
    return "".join(json.dumps(row) + "\n" for row in made).encode()


def fill(store: Any) -> None:
    """A bucket with a table, a folder of parts beside notes and pictures, and a name that leads elsewhere."""
    files = {
        "bucket/one/table.csv": b"text,kind\n" + b"".join(b"some text number %d,%d\n" % (n, n % 2) for n in range(60)),
        "bucket/parts/part-1.jsonl": lines(0, 30),
        "bucket/parts/part-2.jsonl": lines(30, 30),
        "bucket/parts/part-10.jsonl": lines(60, 30),
        "bucket/parts/picture.png": b"\x89PNG",
        "bucket/parts/README.md": b"notes",
        "bucket/parts/_SUCCESS": b"done",
    }
    for path, content in files.items():
        store.pipe_file(path, content)


class Cloud:
    """A store with what a user must have in the environment."""

    def __init__(self, scheme: str, environment: dict[str, str]) -> None:
        self.scheme, self.environment = scheme, environment

    def luthier(self, *arguments: str, cwd: Path, **more: str) -> Done:
        done = luthier(*arguments, cwd=cwd, LUTHIER_HOME=str(cwd / "home"), LUTHIER_OFFLINE="0",
                       **(self.environment | more))  # fmt: skip
        for value in self.environment.values():
            assert value.startswith("http") or len(value) < 6 or value not in done.out + done.err
        return done


def _s3(folder: Path, stack: contextlib.ExitStack) -> Cloud:
    url = stack.enter_context(s3_server(folder))
    import s3fs

    store = s3fs.S3FileSystem(key="any", secret=SECRET, endpoint_url=url)
    store.mkdir("bucket")
    fill(store)
    keys = {"AWS_ACCESS_KEY_ID": "a-key-id-77", "AWS_SECRET_ACCESS_KEY": SECRET}
    return Cloud("s3", {"AWS_ENDPOINT_URL": url, **keys})


def _gs(folder: Path, stack: contextlib.ExitStack) -> Cloud:
    patch = stack.enter_context(pytest.MonkeyPatch.context())
    patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # gRPC, which no emulator speaks; read at import
    url = stack.enter_context(google_server(folder))
    patch.setenv("STORAGE_EMULATOR_HOST", url)
    import gcsfs

    fill(gcsfs.GCSFileSystem(token="anon", project="p"))
    return Cloud("gs", {})


def _az(folder: Path, stack: contextlib.ExitStack) -> Cloud:
    url = stack.enter_context(azure_server(folder))
    import adlfs

    account = "devstoreaccount1"
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={account};AccountKey={AZURE_KEY};BlobEndpoint={url}/{account};"
    )
    store = adlfs.AzureBlobFileSystem(connection_string=connection)
    store.mkdir("bucket")
    fill(store)
    return Cloud("az", {"AZURE_STORAGE_CONNECTION_STRING": connection})


CLOUDS = {"s3": _s3, "gs": _gs, "az": _az}


@pytest.fixture(scope="module", params=CLOUDS)
def cloud(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with contextlib.ExitStack() as stack:
        yield CLOUDS[request.param](tmp_path_factory.mktemp("cloud"), stack)


def test_a_file_a_folder_and_a_pattern_are_read(cloud: Cloud, tmp_path: Path) -> None:
    named = {"one/table.csv": 60, "parts": 90, "parts/part-1*.jsonl": 60}
    missing = ("nosuch.csv", "nosuch/*.csv")
    urls = [f"{cloud.scheme}://bucket/{name}" for name in (*named, *missing)]
    said = fetched(urls, cwd=tmp_path, **cloud.environment)
    assert [said[url] for url in urls[:3]] == list(named.values())
    assert all(url in said[url] for url in urls[3:])
    kept = sorted(path.name for path in (tmp_path / "home" / "data").rglob("*") if path.suffix in (".jsonl", ".png"))
    assert kept == ["part-1.jsonl", "part-1.jsonl", "part-10.jsonl", "part-10.jsonl", "part-2.jsonl"]
    seen = cloud.luthier("data", "inspect", urls[1], "--json", cwd=tmp_path).succeeds().document
    assert (seen["profile"]["path"], seen["profile"]["num_rows"]) == (urls[1], 90)
    assert yaml.safe_load(seen["recipe"])["data"]["train"][0]["path"] == urls[1]


@pytest.mark.slow
def test_a_recipe_is_prepared_from_it_and_holds_no_credentials(cloud: Cloud, tmp_path: Path) -> None:
    url = f"{cloud.scheme}://bucket/parts"
    cloud.luthier("init", url, cwd=tmp_path).succeeds()
    model = paper_model(tmp_path / "model")
    small = ["--set", f"model.name={model}", "--set", "data.privacy.profile=fast"]
    done = cloud.luthier("prepare", "parts.yaml", *small, "--json", cwd=tmp_path).succeeds()
    assert done.document["rows_in"] == 90
    assert list(done.document["source_sha256"]) == [url]
    for path in tmp_path.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        assert SECRET.encode() not in content, path
        assert AZURE_KEY.encode() not in content, path


def test_without_credentials_or_a_server_the_environment_is_named(tmp_path: Path) -> None:
    pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'luthier[cloud]'")
    bare = {"AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path), "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    said = fetched(["s3://bucket/x.csv"], cwd=tmp_path, **bare)["s3://bucket/x.csv"]
    assert "s3://bucket/x.csv cannot be fetched: NoCredentialsError" in said
    assert "AWS_ACCESS_KEY_ID" in said
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": SECRET}
    said = fetched(["s3://bucket/x.csv"], cwd=tmp_path, **bare, **keys)["s3://bucket/x.csv"]
    assert "cannot be fetched: EndpointConnectionError" in said
    assert "AWS_ENDPOINT_URL" in said
    assert SECRET not in said
