"""Models in claims: what the reader prints, what is believed of it, and the Job that runs it (by an API stand-in)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.client.configuration import Configuration
from tests.hugging_face import LLAMA_7B, write_llama
from tests.unit.test_fetch_skim import write_onnx

from dippm import hf_files
from dippm.artifact import open_artifact
from dippm.errors import ArtifactTooLarge, ArtifactUnreachable, DigestMismatch
from dippm.frontend import load_graph
from dippm_operator.controller.claims import (
    ClaimNotFound,
    ClaimPending,
    ClaimReader,
    ClaimReadFailed,
    ClaimsOff,
)
from dippm_operator.controller.settings import ClaimSettings
from dippm_operator.fetch import ArtifactCache
from dippm_operator.fetch.claim import MAX_COMPRESSED_BYTES, ClaimPath, parse_pvc, spoken, understood, write
from dippm_operator.fetch.claim_reader import read
from dippm_operator.kube import ApiClient, Connection
from dippm_operator.resource import InferenceJob, parse_inference_job


async def printed(root: Path, path: str, work: Path, **options: Any) -> str:
    work.mkdir()
    return await read(root, path, work, **options)


@pytest.fixture
def claim(tmp_path: Path) -> Path:
    root = tmp_path / "claim"
    (root / "vision").mkdir(parents=True)
    (root / "lost+found").mkdir(mode=0o700)
    write_onnx(root / "vision" / "net.onnx", width=512)
    write_llama(root / "llm", LLAMA_7B, shards=3)
    return root


async def test_graph_is_handed_over_and_weights_are_not(claim: Path, tmp_path: Path) -> None:
    log = await printed(claim, "vision/net.onnx", tmp_path / "w")
    assert len(log) < 30_000 < (claim / "vision" / "net.onnx").stat().st_size
    handed = understood("pvc://c/vision/net.onnx", log)
    write(handed, tmp_path)
    original = open_artifact(claim / "vision" / "net.onnx")
    assert load_graph(open_artifact(tmp_path / "net.onnx"), batch=2) == load_graph(original, batch=2)
    again = understood("x", await printed(claim, "vision/net.onnx", tmp_path / "w2", known=handed.etag))
    assert (again.files, again.etag) == ((), handed.etag)


@pytest.mark.parametrize("path", ["llm", "llm/"])
async def test_hugging_face_folder_of_thirteen_gigabytes(claim: Path, tmp_path: Path, path: str) -> None:
    log = await printed(claim, path, tmp_path / "w")
    assert len(log) < 60_000
    handed = understood("x", log)
    assert handed.is_folder
    (tmp_path / "out").mkdir()
    write(handed, tmp_path / "out")
    got, expected = (hf_files.read_weight_files(f, "x") for f in (tmp_path / "out", claim / "llm"))
    assert (got.elements, got.header_digest) == (expected.elements, expected.header_digest)
    assert understood("x", await printed(claim, path, tmp_path / "w2", known=handed.etag)).files == ()


def test_reader_is_a_program(claim: Path, tmp_path: Path) -> None:
    """As the Job runs it; what it refuses is its answer too."""
    (claim / "vision" / "out").symlink_to("/etc")
    os.mkfifo(claim / "pipe.onnx")

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "dippm_operator.fetch.claim_reader", *arguments]
        environment = {"PYTHONPATH": ":".join(sys.path)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        assert done.stderr == ""
        return done.stdout

    assert understood("x", run("--whole", "--", str(claim), "vision/net.onnx")).content_digest.startswith("sha256:")
    for path, words in (
        ("vision/none.onnx", "none.onnx cannot be read .No such file"),
        ("pipe.onnx", "pipe.onnx is not a regular file"),
        ("vision/out/passwd", "leads out of the claim"),
        ("", "the claim holds no model"),
        ("empty/", "holds no files"),
    ):
        if path == "":
            (claim / "vision" / "net.onnx").unlink()
        with pytest.raises(ArtifactUnreachable, match=words):
            understood("pvc://c", run("--", str(claim), path))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda log: "",
        lambda log: log[: len(log) // 2],
        lambda log: log.replace("dippm-claim end", ""),
        lambda log: log[:200] + ("A" if log[200] != "A" else "B") + log[201:],
        lambda log: "dippm-claim 1 " + "0" * 64 + " 10\nAAAA\ndippm-claim end\n",
    ],
)
async def test_log_that_is_not_whole_is_not_believed(claim: Path, tmp_path: Path, spoil: Any) -> None:
    log = await printed(claim, "vision/net.onnx", tmp_path / "w")
    with pytest.raises(ArtifactUnreachable, match="is not whole"):
        understood("x", spoil(log))
    assert understood("x", "a warning\n" + log + "another\n").files, "other lines do not matter"


def body(**changes: Any) -> dict[str, Any]:
    file = {"name": "m.onnx", "size": 10, "pieces": [[0, 4]]}
    return {"etag": "e", "main": "", "folder": False, "unchanged": False, "digest": "", "files": [file | changes]}


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "../m.onnx"}, {"name": "/etc/m"}, {"name": ""}, {"size": -1}, {"size": 1 << 60}, {"pieces": [[0, 40]]},
        {"pieces": [[3, 1]]}, {"pieces": [[-4, 0]]}, {"pieces": [[0, 2]]}, {"pieces": "x"}, {"size": None},
    ],
)  # fmt: skip
def test_what_no_reader_says_is_not_believed(changes: dict[str, Any]) -> None:
    assert understood("x", spoken(body(), [b"abcd"])).content == (b"abcd",)
    with pytest.raises(ArtifactUnreachable, match="is not whole"):
        understood("x", spoken(body(**changes), [b"abcd"]))


def test_a_head_without_end_is_not_read() -> None:
    with pytest.raises(ArtifactUnreachable, match="is not whole"):
        understood("x", spoken(body(padding="[" * (2 << 20)), [b"abcd"]))


def test_what_is_too_large_to_hand_over_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArtifactTooLarge, match="of a claim at most 6 MiB are handed over"):
        spoken(body(), [os.urandom(MAX_COMPRESSED_BYTES + 1000)])
    monkeypatch.setattr("dippm_operator.fetch.claim.MAX_BYTES", 1 << 20)
    with pytest.raises(ArtifactTooLarge, match="hands over more than 1 MiB"):
        understood("x", spoken(body(size=2 << 20, pieces=[[0, 2 << 20]]), [bytes(2 << 20)]))


def test_uris_are_spelled_as_kserve_does() -> None:
    assert parse_pvc("pvc://models/a%20b/m.onnx") == ClaimPath("models", "a b/m.onnx")
    assert parse_pvc("pvc://models") == ClaimPath("models", "")
    for bad in (
        "pvc://[models/m.onnx",
        "pvc:///m",
        "pvc://Models/m",
        "pvc://m/../x",
        "pvc://m/%2e%2e/x",
        "pvc://a@b/m",
    ):
        with pytest.raises(ArtifactUnreachable, match="pvc://CLAIM/PATH"):
            parse_pvc(bad)


def job_of(uri: str = "pvc://models/vision/net.onnx", **model: Any) -> InferenceJob:
    manifest = {
        "apiVersion": "dippm.dev/v1alpha1", "kind": "InferenceJob",
        "metadata": {"name": "web", "namespace": "vision", "uid": "u-1"},
        "spec": {
            "model": {"uri": uri, **model}, "batchSize": 1,
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        },
    }  # fmt: skip
    return parse_inference_job(manifest, strict=False)


class Cluster:
    """An API stand-in whose kubelet runs the reader in this process."""

    def __init__(self, root: Path, work: Path) -> None:
        self.root = root
        self.work = work
        self.jobs: list[dict[str, Any]] = []
        self.pod: dict[str, Any] = {}
        self.claim_phase = "Bound"
        application = web.Application()
        core, batch = "/api/v1/namespaces/vision", "/apis/batch/v1/namespaces/vision"
        application.router.add_get(f"{core}/persistentvolumeclaims/{{name}}", self.get_claim)
        application.router.add_post(f"{batch}/jobs", self.make_job)
        application.router.add_get(f"{core}/pods", self.list_pods)
        application.router.add_get(f"{core}/pods/{{name}}/log", self.get_log)
        self.application = application

    async def get_claim(self, request: web.Request) -> web.Response:
        if request.match_info["name"] != "models":
            return web.json_response({"message": "not found"}, status=404)
        return web.json_response({"status": {"phase": self.claim_phase}})

    async def make_job(self, request: web.Request) -> web.Response:
        job = await request.json()
        self.jobs.append(job)
        made = job | {"metadata": job["metadata"] | {"uid": f"uid-{len(self.jobs)}"}}
        return web.json_response(made, status=201)

    async def list_pods(self, request: web.Request) -> web.Response:
        name = self.jobs[-1]["metadata"]["name"]
        assert request.query["labelSelector"] == f"batch.kubernetes.io/job-name={name}"
        owner = {"kind": "Job", "uid": f"uid-{len(self.jobs)}"}
        metadata = {"name": f"{name}-x", "ownerReferences": [owner]}
        pod = {"metadata": metadata, "status": {"phase": "Succeeded"}} | self.pod
        return web.json_response({"items": [pod] if pod["status"] else []})

    async def get_log(self, request: web.Request) -> web.Response:
        assert request.query["container"] == "reader"
        container = self.jobs[-1]["spec"]["template"]["spec"]["containers"][0]
        *options, _, root, path = container["args"]
        assert root == "/claim"
        known = next((o.removeprefix("--known=") for o in options if o.startswith("--known=")), "")
        work = self.work / str(len(self.jobs))
        return web.Response(text=await printed(self.root, path, work, known=known, whole="--whole" in options))


@pytest.fixture
async def cluster(claim: Path, tmp_path: Path) -> AsyncIterator[Cluster]:
    (tmp_path / "work").mkdir()
    cluster = Cluster(claim, tmp_path / "work")
    runner = web.AppRunner(cluster.application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    cluster.url = runner.addresses[0]  # type: ignore[attr-defined]
    yield cluster
    await runner.cleanup()


@pytest.fixture
async def reader(cluster: Cluster, tmp_path: Path) -> AsyncIterator[ClaimReader]:
    host, port = cluster.url  # type: ignore[attr-defined]
    configuration = Configuration(host=f"http://{host}:{port}", api_key={"BearerToken": "Bearer t"})
    async with ApiClient(Connection(configuration)) as api:
        yield ClaimReader(api, ArtifactCache(tmp_path / "cache", 10**9), ClaimSettings("dippm:1", seconds=30.0))


async def test_claim_is_read_once_and_asked_again(cluster: Cluster, reader: ClaimReader, claim: Path) -> None:
    async with reader.open(job_of()) as artifact:
        assert artifact.size_bytes == (claim / "vision" / "net.onnx").stat().st_size
        assert 0 < artifact.fetched_bytes < 30_000
        assert load_graph(open_artifact(artifact.path), batch=2).operators
        etag = artifact.etag
    async with reader.open(job_of()) as artifact:
        assert artifact.fetched_bytes < 1_000, "nothing changed, says the log"
        assert artifact.etag == etag
    write_onnx(claim / "vision" / "net.onnx", width=256)
    async with reader.open(job_of()) as artifact:
        assert artifact.etag != etag
        assert artifact.size_bytes == (claim / "vision" / "net.onnx").stat().st_size


async def test_digest_is_verified(reader: ClaimReader, claim: Path) -> None:
    from dippm.artifact import sha256_of

    digest = sha256_of(claim / "vision" / "net.onnx")
    async with reader.open(job_of()):
        pass
    async with reader.open(job_of(digest=digest)) as artifact:
        assert artifact.content_digest == digest
    with pytest.raises(DigestMismatch, match="not sha256:0000"):
        async with reader.open(job_of(digest="sha256:" + "0" * 64)):
            pass


async def test_job_has_no_rights_and_an_end(cluster: Cluster, reader: ClaimReader) -> None:
    async with reader.open(job_of()):
        pass
    job = cluster.jobs[0]
    assert len(job["metadata"]["name"]) <= 63
    assert job["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    assert "dippm.dev/inference-job" not in job["metadata"]["labels"]
    assert job["spec"]["template"]["metadata"]["labels"]["dippm.dev/inject"] == "false"
    assert (job["spec"]["backoffLimit"], job["spec"]["ttlSecondsAfterFinished"]) == (0, 60)
    assert job["spec"]["activeDeadlineSeconds"] == 30
    pod = job["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip


SCHEDULING = {
    "type": "PodScheduled",
    "status": "False",
    "message": "0/3 nodes: pod has unbound\nPersistentVolumeClaims.",
}
WAITING = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
ENDED = {"state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        ({}, ClaimPending, "got no pod to read it within 2 s"),
        ({"phase": "Pending", "conditions": [SCHEDULING]}, ClaimPending, r"\(0/3 nodes: pod has unbound Persist"),
        ({"phase": "Pending", "containerStatuses": [WAITING]}, ClaimPending, "ImagePullBackOff: no such image"),
        ({"phase": "Pending"}, ClaimPending, "is the claim in use on another node"),
        ({"phase": "Running"}, ClaimReadFailed, "took longer than 2 s"),
        ({"phase": "Failed", "containerStatuses": [ENDED]}, ClaimReadFailed, "exit code 137, OOMKilled"),
        ({"phase": "Failed", "reason": "DeadlineExceeded"}, ClaimReadFailed, "DeadlineExceeded"),
    ],
)
async def test_reader_that_does_not_answer_says_why(
    cluster: Cluster, reader: ClaimReader, status: dict[str, Any], kind: type[Exception], words: str
) -> None:
    cluster.pod = {"status": status}
    hasty = ClaimReader(reader._api, reader._cache, ClaimSettings("dippm:1", seconds=2.0))
    with pytest.raises(kind, match=words) as refused:
        async with hasty.open(job_of()):
            pass
    assert "\n" not in str(refused.value)


async def test_a_strangers_pod_with_the_jobs_label_is_not_believed(cluster: Cluster, reader: ClaimReader) -> None:
    cluster.pod = {"metadata": {"name": "stranger", "ownerReferences": [{"kind": "Job", "uid": "another"}]}}
    hasty = ClaimReader(reader._api, reader._cache, ClaimSettings("dippm:1", seconds=2.0))
    with pytest.raises(ClaimPending, match="got no pod to read it"):
        async with hasty.open(job_of()):
            pass


async def test_claim_that_is_not_there_or_not_read(cluster: Cluster, reader: ClaimReader, tmp_path: Path) -> None:
    with pytest.raises(ClaimNotFound, match="there is no PersistentVolumeClaim other in namespace vision"):
        async with reader.open(job_of("pvc://other/net.onnx")):
            pass
    cluster.claim_phase = "Lost"
    with pytest.raises(ClaimNotFound, match="is lost"):
        async with reader.open(job_of()):
            pass
    assert cluster.jobs == []
    off = ClaimReader(reader._api, ArtifactCache(tmp_path / "c", 1), ClaimSettings(""))
    with pytest.raises(ClaimsOff, match=r"set operator\.claims\.enabled"):
        async with off.open(job_of()):
            pass
    assert {ClaimNotFound.reason, ClaimPending.reason, ClaimReadFailed.reason, ClaimsOff.reason} == {
        "ClaimNotFound", "ClaimPending", "ClaimReadFailed", "ClaimsOff",
    }  # fmt: skip


async def test_a_claim_that_no_disk_takes_is_one_sentence(reader: ClaimReader, tmp_path: Path) -> None:
    (tmp_path / "cache").rmdir()
    with pytest.raises(
        ArtifactUnreachable, match=r"^pvc://models/vision/net.onnx cannot be kept on the operator's disk"
    ):
        async with reader.open(job_of()):
            pass
