"""What a file is, said by its content."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dippm.artifact import FORMATS, FRAMEWORKS, open_artifact, sha256_of
from dippm.detection import detect
from dippm.errors import ArtifactUnreachable, DigestMismatch, DippmError, ModelFormatError

MODELS = Path(__file__).parents[2] / "examples" / "models"


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "{}")
    return buffer.getvalue()


SAVED_MODEL = b"\x08\x01\x12\x83\x01\x0a\x80\x01" + b"\x2a\x7e" + bytes(126)
"""How a `saved_model.pb` begins: schema version 1, a graph, its description."""


@pytest.mark.parametrize(("name", "kind"), [("resnet50.onnx", "onnx"), ("vgg16.pt", "torchscript")])
def test_the_examples_are_known_by_content_whatever_they_are_called(tmp_path: Path, name: str, kind: str) -> None:
    renamed = tmp_path / "model.bin"
    renamed.write_bytes((MODELS / name).read_bytes())
    artifact = open_artifact(renamed, uri="s3://models/x")
    assert artifact.format == kind
    assert artifact.size_bytes == (MODELS / name).stat().st_size
    assert artifact.uri == "s3://models/x"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (zipped("m/archive_format", "m/models/model.json"), "pt2"),
        (zipped("m/constants.pkl", "m/code/__torch__.py"), "torchscript"),
        (zipped("m/data.pkl", "m/version"), "pickle"),
        (pickle.dumps({"a": 1}, protocol=2), "pickle"),
        (zipped("config.json", "metadata.json", "model.weights.h5"), "keras"),
        (zipped("m/saved_model.pb", "m/variables/variables.index"), "savedmodel"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "keras"),
        (bytes(4) + b"TFL3" + bytes(64), "tflite"),
        (SAVED_MODEL, "savedmodel"),
    ],
)
def test_archives_are_told_apart(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "m").write_bytes(content)
    assert open_artifact(tmp_path / "m").format == kind


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"hello, this is no model at all", "no model.*safetensors.*PaddlePaddle.*Hugging Face"),
        (b"<!DOCTYPE html><html>", "web page.*name the file itself"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        ((19).to_bytes(8, "little") + b'{"__metadata__":{}}', "safetensors.*torch.export"),
        (zipped("serialized_exported_program.json", "version"), "older PyTorch"),
        (zipped("readme.txt"), "without a model"),
        (zipped("m/archive_format", "m/models/model.json")[:60], "truncated or damaged zip"),
    ],
)
def test_what_is_no_open_door_is_named_with_the_way_out(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "file.onnx").write_bytes(content)
    with pytest.raises(ModelFormatError, match=says) as refused:
        open_artifact(tmp_path / "file.onnx")
    assert "file.onnx" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_directories_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelFormatError, match=r"name the model file in it$"):
        open_artifact(tmp_path)
    for name in ("d.onnx", "c.pt2", "b.ts", "a.keras", "notes.txt"):
        (tmp_path / name).touch()
    with pytest.raises(ModelFormatError, match=r"name the model file in it \(a.keras, b.ts, c.pt2, \.\.\.\)$"):
        open_artifact(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ModelFormatError, match=r"no SavedModel: its saved_model.pb is damaged"):
        open_artifact(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(SAVED_MODEL)
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "variables.index").write_bytes(bytes(100))
    artifact = open_artifact(tmp_path, framework="tensorflow", digest=sha256_of(tmp_path / "saved_model.pb"))
    assert (artifact.format, artifact.size_bytes) == ("savedmodel", 100 + len(SAVED_MODEL))


def test_a_digest_is_verified_over_the_whole_file() -> None:
    path = MODELS / "resnet50.onnx"
    digest = sha256_of(path)
    assert open_artifact(path, digest=digest).digest == digest
    assert open_artifact(path, digest=digest.removeprefix("sha256:").upper()).digest == digest
    with pytest.raises(DigestMismatch, match="has digest sha256:"):
        open_artifact(path, digest="sha256:" + "0" * 64)
    with pytest.raises(DigestMismatch, match="64 hexadecimal"):
        open_artifact(path, digest="md5:1234")


def test_the_users_word_is_held_against_the_content() -> None:
    assert open_artifact(MODELS / "vgg16.pt", framework="pytorch").format == "torchscript"
    with pytest.raises(ModelFormatError, match="is an ONNX model, not pytorch"):
        open_artifact(MODELS / "resnet50.onnx", framework="pytorch")
    with pytest.raises(ModelFormatError, match="is an ONNX model, not tensorflow"):
        open_artifact(MODELS / "resnet50.onnx", framework="tensorflow")
    with pytest.raises(ModelFormatError, match="'caffe' is not known"):
        open_artifact(MODELS / "resnet50.onnx", framework="caffe")


@pytest.mark.parametrize("word", ["keras", "savedmodel", "tflite", "safetensors"])
def test_every_format_that_is_listed_is_a_word_for_its_own_files(tmp_path: Path, word: str) -> None:
    assert set(FORMATS) - {"pickle"} <= set(FRAMEWORKS)
    heads = {
        "keras": b"\x89HDF\r\n\x1a\n" + bytes(64),
        "savedmodel": SAVED_MODEL,
        "tflite": bytes(4) + b"TFL3" + bytes(64),
    }
    heads["safetensors"] = (2).to_bytes(8, "little") + b"{}"
    for name, head in heads.items():
        (tmp_path / name).write_bytes(head)
        constructor = "timm:resnet18" if name == "safetensors" else ""
        if name == word:
            assert open_artifact(tmp_path / name, framework=word, constructor=constructor).format == name
        else:
            with pytest.raises(ModelFormatError, match=f"not {word}: use --framework auto"):
                open_artifact(tmp_path / name, framework=word, constructor=constructor)


@pytest.mark.timeout(20)
def test_what_is_no_regular_file_is_refused_by_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.onnx")
    for path in (tmp_path / "pipe.onnx", Path("/dev/zero")):
        with pytest.raises(ArtifactUnreachable, match=f"{path.name} is not a regular file: save the model to one"):
            open_artifact(path)


def test_a_file_uri_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a b.onnx").write_bytes((MODELS / "resnet50.onnx").read_bytes())
    monkeypatch.chdir(tmp_path)
    for uri in (f"file://{tmp_path}/a%20b.onnx", f"file://localhost{tmp_path}/a%20b.onnx", "file:a%20b.onnx"):
        assert open_artifact(uri).path.samefile(tmp_path / "a b.onnx")
    with pytest.raises(ArtifactUnreachable, match=r"a file URI names no host; write file:///models/m.onnx"):
        open_artifact("file://models/m.onnx")
    with pytest.raises(ArtifactUnreachable, match="write file:///PATH"):
        open_artifact("file://[x")


def test_a_uri_is_named_as_one() -> None:
    with pytest.raises(ArtifactUnreachable, match=r"https://models.example.com/m.onnx is a URI"):
        open_artifact("https://models.example.com/m.onnx")


def test_a_missing_file_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(ArtifactUnreachable, match="No such file"):
        open_artifact(tmp_path / "absent.onnx")


@given(head=st.binary(max_size=200))
def test_any_bytes_are_a_format_or_a_clause(head: bytes) -> None:
    try:
        said = detect(Path("/nonexistent"), head)
    except DippmError as error:  # pragma: no cover - a refusal would do as well
        said = str(error)
    assert said in FORMATS or said.startswith(("is ", "holds ", "looks "))
