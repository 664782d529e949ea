"""S3 against moto's server: signed and anonymous reads, by ranges, under the Secret's own rules."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer
from tests.hugging_face import LLAMA_7B, write_llama
from tests.unit.test_fetch_skim import LIMITS, write_onnx

from dippm.artifact import open_artifact
from dippm.errors import ArtifactUnreachable, DippmError
from dippm.frontend import load_graph
from dippm_operator.fetch import LINK_LOCAL, LOOPBACK, ArtifactCache, Credentials, Fetcher
from dippm_operator.fetch.credentials import s3_options
from dippm_operator.fetch.s3 import s3_bucket

TINY = LLAMA_7B | {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 8, "num_attention_heads": 4,
                   "num_key_value_heads": 4, "vocab_size": 1000}  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s"
    )
    client.create_bucket(Bucket="models")
    return client


@pytest.fixture
async def fetcher(tmp_path: Path) -> AsyncIterator[Fetcher]:
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 1_000_000_000), LIMITS)
    yield fetcher
    await fetcher.close()


def secret(endpoint: str, *, hosts: str = "127.0.0.1", **data: str) -> dict[str, Any]:
    """A Secret as the API gives it, with KServe's keys and annotations."""
    values = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"} | data
    notes = {"serving.kserve.io/s3-endpoint": endpoint.removeprefix("http://"), "serving.kserve.io/s3-usehttps": "0"}
    return {
        "metadata": {"name": "reader", "annotations": notes | {"dippm.dev/hosts": hosts}},
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in values.items() if value},
    }


async def test_onnx_in_a_bucket_costs_its_graph(endpoint: str, bucket: Any, fetcher: Fetcher, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(path, width=512)
    bucket.upload_file(str(path), "models", "vision/a b+c.onnx")
    credentials = Credentials.from_secret(secret(endpoint))
    uri = "s3://models/vision/a%20b+c.onnx"
    async with fetcher.open(uri, credentials=credentials) as artifact:
        assert artifact.size_bytes == path.stat().st_size
        assert artifact.fetched_bytes < 60_000
        assert load_graph(open_artifact(artifact.path), batch=2) == load_graph(open_artifact(path), batch=2)
    async with fetcher.open(uri, credentials=credentials) as artifact:
        assert artifact.fetched_bytes == 0, "the ETag says that nothing changed"
    write_onnx(path, width=256)
    bucket.upload_file(str(path), "models", "vision/a b+c.onnx")
    async with fetcher.open(uri, credentials=credentials) as artifact:
        assert artifact.size_bytes == path.stat().st_size


async def test_missing_object_and_folder_say_so(endpoint: str, bucket: Any, fetcher: Fetcher) -> None:
    credentials = Credentials.from_secret(secret(endpoint))
    with pytest.raises(ArtifactUnreachable, match=r"s3://models/nothing.onnx answered 404"):
        async with fetcher.open("s3://models/nothing.onnx", credentials=credentials):
            pass
    with pytest.raises(ArtifactUnreachable, match="s3://models/folder/ holds no files"):
        async with fetcher.open("s3://models/folder/", credentials=credentials):
            pass


async def test_endpoint_of_a_secret_cannot_be_an_address_of_ours(endpoint: str, tmp_path: Path) -> None:
    limits = replace(LIMITS, blocked_networks=(*LINK_LOCAL, *LOOPBACK))
    fetcher = Fetcher(ArtifactCache(tmp_path / "cache", 1), limits)
    for inner in (endpoint, "http://169.254.169.254"):
        credentials = Credentials.from_secret(secret(inner, hosts="*"))
        with pytest.raises(ArtifactUnreachable, match="models are not fetched from"):
            async with fetcher.open("s3://models/m.onnx", credentials=credentials):
                pass
    await fetcher.close()


@pytest.mark.parametrize(
    ("hosts", "data", "words"),
    [
        ("", {}, r"may not be sent to 127.0.0.1; its owner allows it with the annotation dippm.dev/hosts"),
        ("*.example.com", {}, "may not be sent to 127.0.0.1"),
        ("127.0.0.*", {"AWS_SECRET_ACCESS_KEY": ""}, "has no AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_secret_that_does_not_do(hosts: str, data: dict[str, str], words: str) -> None:
    with pytest.raises(ArtifactUnreachable, match=words):
        s3_options(Credentials.from_secret(secret("http://127.0.0.1:9", hosts=hosts, **data)))


def test_aws_itself_is_meant_where_there_is_no_endpoint() -> None:
    bucket = s3_bucket("s3://models/a/b c.onnx", None)
    assert (bucket.url, bucket.key) == ("https://models.s3.us-east-1.amazonaws.com", "a/b c.onnx")
    assert bucket.sign is None, "without a Secret nobody's identity is used"
    assert s3_bucket("s3://my.models/m.onnx", None).url == "https://s3.us-east-1.amazonaws.com/my.models"


@pytest.mark.parametrize("uri", ["s3://models/llm/llama/", "s3://models/llm/llama"])
async def test_hugging_face_folder_under_a_prefix(
    endpoint: str, bucket: Any, fetcher: Fetcher, tmp_path: Path, uri: str
) -> None:
    write_llama(tmp_path / "llama", TINY, shards=2)
    for path in (tmp_path / "llama").iterdir():
        bucket.upload_file(str(path), "models", f"llm/llama/{path.name}")
    bucket.put_object(Bucket="models", Key="llm/llama-other/model.onnx", Body=b"not ours")
    credentials = Credentials.from_secret(secret(endpoint))
    async with fetcher.open(uri, credentials=credentials) as artifact:
        assert artifact.fetched_bytes < 30_000 < artifact.size_bytes
        assert open_artifact(artifact.path).format == "huggingface"
        assert {p.name for p in artifact.path.iterdir()} == {p.name for p in (tmp_path / "llama").iterdir()}
    async with fetcher.open(uri, credentials=credentials) as artifact:
        assert artifact.fetched_bytes == 0


async def test_newest_version_of_a_saved_model_without_its_variables(
    endpoint: str, bucket: Any, fetcher: Fetcher
) -> None:
    shard = b"w" * 3_000_000
    for version in (2, 10):
        files = {"saved_model.pb": b"\x08\x01" + b"graph" * 100, "variables/variables.index": b"index",
                 "variables/variables.data-00000-of-00001": shard, "assets/vocabulary.txt": b"a b"}  # fmt: skip
        for path, content in files.items():
            bucket.put_object(Bucket="models", Key=f"tf/net/{version}/{path}", Body=content + b"%d" % version)
    credentials = Credentials.from_secret(secret(endpoint))
    async with fetcher.open("s3://models/tf/net/", credentials=credentials) as artifact:
        assert (artifact.path / "saved_model.pb").read_bytes().endswith(b"graph10")
        assert (artifact.path / "assets" / "vocabulary.txt").read_bytes() == b"a b10"
        variables = artifact.path / "variables" / "variables.data-00000-of-00001"
        assert variables.stat().st_size == len(shard) + 2
        assert variables.stat().st_blocks == 0, "a hole"
        assert artifact.fetched_bytes < 2_000


async def test_folder_markers_are_no_files(endpoint: str, bucket: Any, fetcher: Fetcher, tmp_path: Path) -> None:
    """As consoles (`folder/`) and Hadoop's clients (`folder`, `folder_$folder$`) leave them."""
    for key in ("marked/", "marked/net", "marked/net/", "marked/net/1/", "marked/net/1/variables", "marked_$folder$"):
        bucket.put_object(Bucket="models", Key=key, Body=b"")
    files = {"saved_model.pb": b"\x08\x01" + b"graph" * 100, "variables/variables.index": b"index"}
    for path, content in files.items():
        bucket.put_object(Bucket="models", Key=f"marked/net/1/{path}", Body=content)
    credentials = Credentials.from_secret(secret(endpoint))
    async with fetcher.open("s3://models/marked/net", credentials=credentials) as artifact:
        assert {str(p.relative_to(artifact.path)) for p in artifact.path.rglob("*") if p.is_file()} == set(files)
    bucket.put_object(Bucket="models", Key="marked/empty/", Body=b"")
    with pytest.raises(ArtifactUnreachable, match="marked/empty/ holds no files"):
        async with fetcher.open("s3://models/marked/empty/", credentials=credentials):
            pass


async def test_what_no_disk_can_hold_is_one_sentence(endpoint: str, bucket: Any, fetcher: Fetcher) -> None:
    for key in ("both/saved_model.pb", "both/assets", "both/assets/words.txt", "long/saved_model.pb"):
        bucket.put_object(Bucket="models", Key=key, Body=b"\x08\x01 content")
    bucket.put_object(Bucket="models", Key=f"long/assets/{'x' * 300}.txt", Body=b"words")
    credentials = Credentials.from_secret(secret(endpoint))
    for uri, words in (
        ("s3://models/both/", r"models/both has assets both as a file and as the folder of assets/words.txt"),
        ("s3://models/long/", r"models/long/ cannot be kept on the operator's disk \(File name too long\)"),
    ):
        with pytest.raises(ArtifactUnreachable, match=words):
            async with fetcher.open(uri, credentials=credentials):
                pass


async def test_prefix_of_many_objects_is_listed_to_its_end(
    endpoint: str, bucket: Any, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dippm_operator.fetch.s3.PAGE", 3)
    for number in range(7):
        bucket.put_object(Bucket="models", Key=f"many/data/{number}.txt", Body=b"")
    bucket.put_object(Bucket="models", Key="many/z/net.tflite", Body=b"\x18\0\0\0TFL3" + b"\0" * 100)
    async with fetcher.open("s3://models/many/", credentials=Credentials.from_secret(secret(endpoint))) as artifact:
        assert artifact.path.name.endswith("many")
        assert artifact.size_bytes == 108


def test_secret_is_not_shown() -> None:
    credentials = Credentials.from_secret(secret("http://127.0.0.1:9", AWS_SECRET_ACCESS_KEY="hidden"))
    assert "hidden" not in repr(credentials) + repr(s3_options(credentials))
    broken = {"metadata": {"name": "reader"}, "data": {"AWS_ACCESS_KEY_ID": "%%%"}}
    with pytest.raises(DippmError, match="not text"):
        Credentials.from_secret(broken)
