"""`dippm size`: what comes out for what goes in. The predictor is a stand-in; manifests, files and sizing are real."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.operator_predictions import prediction_of

from dippm.errors import ArtifactUnreachable, DigestMismatch, ManifestError
from dippm.prediction import Prediction
from dippm_operator.manifests import read_documents, write_document
from dippm_operator.predict import Question
from dippm_operator.size_command import SizeCommand

JOB = """\
apiVersion: dippm.dev/v1alpha1
kind: InferenceJob
metadata: {name: resnet50, namespace: vision}
spec:
  model: {uri: "file:model.onnx"}
  batchSize: 32
  template:
    spec:
      containers: [{name: server, image: "example/server:1"}]
"""
TARGETING = """\
apiVersion: dippm.dev/v1alpha1
kind: InferenceJob
metadata: {name: web}
spec:
  model: {uri: "file:model.onnx"}
  batchSize: 1
  targetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
"""
DEPLOYMENT = """\
# the web server
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: server, image: "example/web:1", env: [{name: HASH, value: "123e45"}, {name: DAY, value: "2026-01-02"}]}
"""
CONFIG = """\
# kept: a comment, a "quoted" value and an odd layout
apiVersion: v1
kind: ConfigMap
metadata:   {name: c}
data: {a: "1", day: 2026-01-02}
"""


class Asked:
    """A predictor that remembers what it was asked and answers with so many MiB."""

    def __init__(self, required_mib: float = 1700) -> None:
        self.questions: list[Question] = []
        self._required_mib = required_mib

    def __call__(self, question: Question) -> Prediction:
        self.questions.append(question)
        return prediction_of(self._required_mib, case=question.case, policy=question.policy)


Run = Callable[..., tuple[list[Any], str]]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    (tmp_path / "model.onnx").write_bytes(b"model")

    def call(
        *texts: str, options: tuple[str, ...] = (), predictor: Callable[[Question], Prediction] | None = None
    ) -> tuple[list[Any], str]:
        path = tmp_path / "in.yaml"
        path.write_text("---\n".join(texts))
        command = SizeCommand(predictor or Asked())
        parser = argparse.ArgumentParser()
        command.add_arguments(parser)
        assert command.run(parser.parse_args(["-f", str(path), *options])) == 0
        printed = capsys.readouterr()
        return list(yaml.safe_load_all(printed.out)), printed.out + "\0" + printed.err

    return call


def test_inference_job_becomes_its_sized_job(run: Run) -> None:
    (job,), printed = run(JOB)
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert job["metadata"]["name"] == "resnet50"
    assert job["metadata"]["labels"] == {"dippm.dev/inference-job": "resnet50"}
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/mig-1g.5gb": 1}, "requests": {"nvidia.com/mig-1g.5gb": 1}}
    assert ">  1g.5gb" in printed.partition("\0")[2]


def test_relative_file_uri_starts_from_the_manifests_folder(run: Run, tmp_path: Path) -> None:
    asked = Asked()
    run(JOB, predictor=asked)
    assert asked.questions[0].path == tmp_path / "model.onnx"
    assert asked.questions[0].case.batch == 32


def test_other_documents_pass_through_word_for_word(run: Run) -> None:
    _, printed = run(CONFIG, JOB, DEPLOYMENT)
    assert CONFIG in printed
    assert DEPLOYMENT in printed


def test_target_in_the_same_input_is_sized_and_the_inference_job_vanishes(run: Run) -> None:
    documents, printed = run(DEPLOYMENT, CONFIG, TARGETING)
    assert [d["kind"] for d in documents] == ["Deployment", "ConfigMap"]
    container = documents[0]["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"nvidia.com/mig-1g.5gb": 1}
    assert "'123e45'" in printed, "Go's YAML reads it as a number without quotes"
    assert container["env"][1]["value"] == "2026-01-02"


def test_target_that_is_not_in_the_input_is_one_sentence(run: Run) -> None:
    with pytest.raises(ManifestError, match=r"Deployment web that spec.targetRef names is not in the input"):
        run(TARGETING)


def test_recommend_touches_nothing(run: Run) -> None:
    recommend = JOB.replace("  batchSize", "  policy: {mode: Recommend}\n  batchSize")
    documents, printed = run(recommend)
    assert documents == [yaml.safe_load(recommend)]
    assert "1g.5gb" in printed.partition("\0")[2]


def test_too_large_for_every_profile_is_one_sentence(run: Run) -> None:
    with pytest.raises(ManifestError, match=r"resnet50: the model needs at most 99,?000 MiB .* the largest profile"):
        run(JOB, predictor=Asked(99_000))


def test_json_is_one_list_that_kubectl_takes(run: Run) -> None:
    _, printed = run(CONFIG, JOB, options=("--json", "--quiet"))
    out, _, err = printed.partition("\0")
    body = json.loads(out)
    assert (body["kind"], [i["kind"] for i in body["items"]]) == ("List", ["ConfigMap", "Job"])
    assert err == ""


def test_jobs_inside_a_list_are_found(run: Run) -> None:
    text = write_document({"apiVersion": "v1", "kind": "List", "items": [yaml.safe_load(JOB), {"kind": "X"}]})
    documents, _ = run(text)
    assert [d["kind"] for d in documents] == ["Job", "X"]


def test_device_option_stands_in_where_the_manifest_names_none(run: Run) -> None:
    asked = Asked()
    run(JOB, options=("--device", "A30"), predictor=asked)
    run(
        JOB.replace("  batchSize", "  device: A100-PCIE-40GB\n  batchSize"),
        options=("--device", "A30"),
        predictor=asked,
    )
    assert [q.case.device for q in asked.questions] == ["A30", "A100-PCIE-40GB"]


def test_model_that_is_not_there_or_not_the_one_is_one_sentence(run: Run) -> None:
    with pytest.raises(ArtifactUnreachable, match=r"missing\.onnx"):
        run(JOB.replace("model.onnx", "missing.onnx"))
    wrong = JOB.replace('uri: "file:model.onnx"', f'uri: "file:model.onnx", digest: "sha256:{"0" * 64}"')
    with pytest.raises(DigestMismatch, match="sha256:0000"):
        run(wrong)


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("a: 1\nb: [1\n")
    with pytest.raises(ManifestError, match=r"bad\.yaml, line \d"):
        read_documents([str(path)])
    with pytest.raises(ManifestError, match=r"nowhere\.yaml"):
        read_documents([str(tmp_path / "nowhere.yaml")])


def test_standard_input_and_folders_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "b.yaml").write_text("{kind: B}\n---\n\n---\nkind: C\n")
    (tmp_path / "a.json").write_text('{"kind": "A"}')
    (tmp_path / "notes.txt").write_text("no: manifest")
    monkeypatch.setattr("sys.stdin", io.StringIO("kind: D\n"))
    assert [d.body["kind"] for d in read_documents([str(tmp_path), "-"])] == ["A", "B", "C", "D"]


def test_an_input_without_an_inference_job_is_said_to_be(run: Run) -> None:
    documents, printed = run(CONFIG)
    assert [document["kind"] for document in documents] == ["ConfigMap"]
    assert printed.endswith("\0warning: there is no InferenceJob in the input: nothing was sized\n")
    assert "warning" not in run(CONFIG, JOB)[1]


def test_a_warning_is_printed_once(run: Run) -> None:
    asks = DEPLOYMENT.replace("image:", "resources: {limits: {nvidia.com/gpu: 1}}, image:")
    _, printed = run(TARGETING, TARGETING, asks)  # `-f job.yaml -f folder` reads a manifest twice
    assert printed.count("already asks for nvidia.com/gpu: 1") == 1
