"""Hugging Face folders: known by their config, headers alone read, no code of theirs run, built without weights."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import shutil
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dippm import hf_files
from dippm.artifact import open_artifact
from dippm.case import Case, Precision, Runtime
from dippm.errors import DigestMismatch, DippmError, InputShapeError, ModelFormatError, UnsafeModel
from dippm.features import static_features
from dippm.frontend import load_graph, parse_input
from dippm.frontend.child import load_graph_in_child
from dippm.frontend.hf_config import believed
from dippm.graph import ModelGraph
from dippm.predictor import graph_notes
from dippm.runtimes import resolve

Config = dict[str, Any]
BERT: Config = {
    "model_type": "bert", "architectures": ["BertForMaskedLM"], "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA_7B: Config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float16"}
"""transformers' own defaults are those of LLaMA 7B."""


def needs_transformers() -> None:
    """The ordinary environment lacks transformers. It is looked for, not imported: how it is imported is tested too."""
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("builds architectures with transformers: needs the extra huggingface")


def write_config(folder: Path, config: Config) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def write_weights(path: Path, tensors: dict[str, tuple[str, list[int], int]], *, cut: int = 0) -> None:
    """A safetensors file whose data is a hole; `tensors` are dtype, shape and bytes, `cut` bytes lack at its end."""
    header, at = {}, 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + at - cut)


def graph_of(folder: Path, *inputs: str, batch: int = 2) -> ModelGraph:
    return load_graph(open_artifact(folder), batch=batch, inputs=tuple(map(parse_input, inputs)) or None)


def test_a_folder_and_the_config_in_it_are_the_same_artifact(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "bert", BERT)
    write_weights(folder / "model.safetensors", {"a": ("F16", [3, 4], 24)})
    artifact = open_artifact(folder)
    assert artifact.format == "huggingface"
    assert artifact.size_bytes == sum(p.stat().st_size for p in folder.iterdir())
    by_config = open_artifact(folder / "config.json", framework="huggingface")
    assert (by_config.path, by_config.format, by_config.size_bytes) == (folder, "huggingface", artifact.size_bytes)
    with pytest.raises(ModelFormatError, match="a Hugging Face folder, not onnx"):
        open_artifact(folder, framework="onnx")
    with pytest.raises(ModelFormatError, match="name the folder"):
        open_artifact(folder / "model.safetensors")


def test_the_digest_is_of_config_and_headers(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", BERT)
    write_weights(folder / "model.safetensors", {"a": ("F32", [2], 8)})
    digest = hf_files.folder_digest(folder, hf_files.read_weight_files(folder, "m"))
    assert open_artifact(folder, digest=digest).digest == digest
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-8, 2)
        file.write(b"\x01" * 8)
    assert open_artifact(folder, digest=digest).digest == digest, "other values, the same model"
    write_weights(folder / "model.safetensors", {"a": ("F16", [2], 4)})
    with pytest.raises(DigestMismatch, match="has digest sha256:"):
        open_artifact(folder, digest=digest)


def test_shards_are_added_up_from_their_headers(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", BERT)
    terabyte = 1 << 40
    write_weights(folder / "model-1.safetensors", {"a": ("BF16", [terabyte // 2], terabyte)})
    write_weights(folder / "model-2.safetensors", {"b": ("F32", [5, 2], 40), "c": ("BF16", [], 2)})
    index = {"a": "model-1.safetensors", "b": "model-2.safetensors", "c": "model-2.safetensors"}
    (folder / hf_files.INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    weights = hf_files.read_weight_files(folder, "m")
    assert [p.name for p in weights.files] == ["model-1.safetensors", "model-2.safetensors"]
    assert weights.bytes_by_dtype == {"bfloat16": terabyte + 2, "float32": 40}
    assert (weights.elements, weights.main_dtype) == (terabyte // 2 + 11, "bfloat16")
    (folder / "model-2.safetensors").unlink()
    with pytest.raises(ModelFormatError, match=r"model-2\.safetensors is missing"):
        open_artifact(folder)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "model.bin"])
def test_an_index_names_files_in_the_folder_only(tmp_path: Path, name: str) -> None:
    folder = write_config(tmp_path / "m", BERT)
    (folder / hf_files.INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ModelFormatError, match="no safetensors file in the folder itself"):
        open_artifact(folder)


@pytest.mark.parametrize(
    ("tensor", "cut", "says"),
    [
        (("F32", [4], 16), 1, "download complete"),
        (("F32", [4], 12), 0, "does not hold tensor 'a'"),
        (("F32", [-1, -4], 16), 0, "does not hold tensor 'a'"),
        (("F32", [1 << 70], 16), 0, "does not hold tensor 'a'"),
    ],
)
def test_a_header_must_be_true(tmp_path: Path, tensor: tuple[str, list[int], int], cut: int, says: str) -> None:
    folder = write_config(tmp_path / "m", BERT)
    write_weights(folder / "model.safetensors", {"a": tensor}, cut=cut)
    with pytest.raises(ModelFormatError, match=says):
        open_artifact(folder)


@given(data=st.binary(max_size=64))
def test_any_bytes_are_weights_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = write_config(tmp_path_factory.getbasetemp() / "any", BERT)
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(DippmError) as refused:
        open_artifact(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"[]", "no model"),
        (b"{", "config.json is not the JSON object"),
        (b"{}", "names no model_type"),
        (b'{"a":' * 5000, "config.json is nested too deeply"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, text: bytes, says: str) -> None:
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises(ModelFormatError, match=says):
        open_artifact(tmp_path / "config.json")


def test_a_git_lfs_pointer_is_told(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "m", BERT)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(ModelFormatError, match="git lfs pull"):
        open_artifact(folder)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("load", [load_graph, load_graph_in_child])
def test_remote_code_is_never_run(tmp_path: Path, load: Any, nested: bool) -> None:
    canary = tmp_path / "canary"
    folder = tmp_path / "m"
    asks = {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel"}}
    write_config(folder, {**BERT, "text_config": asks} if nested else {**BERT, **asks})
    (folder / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    with pytest.raises(UnsafeModel, match=r"auto_map.*never run.*torch\.export"):
        load(open_artifact(folder), batch=1, inputs=(parse_input("16"),))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("extra", "error", "says"),
    [
        ({"trust_remote_code": True}, UnsafeModel, "trust_remote_code"),
        ({"custom_pipelines": {"x": {"impl": "evil.P"}}}, UnsafeModel, "custom_pipelines"),
        ({"backbone": "somebody/else"}, ModelFormatError, "another model"),
        ({"use_timm_backbone": True}, ModelFormatError, "another model"),
        ({"model_type": "timm_wrapper"}, ModelFormatError, "timm"),
        ({"quantization_config": {"quant_method": "awq"}}, ModelFormatError, "quantised .awq."),
        ({"num_hidden_layers": 10**6}, ModelFormatError, "num_hidden_layers = 1000000"),
        ({"vision_config": {"depths": [2, 10**7]}}, ModelFormatError, "depths = 10000000"),
        ({"hidden_size": 1 << 40}, ModelFormatError, "hidden_size"),
        ({"num_local_experts": 10**5}, ModelFormatError, "num_local_experts"),
    ],
)
def test_what_is_not_believed_is_named(extra: Config, error: type[DippmError], says: str) -> None:
    with pytest.raises(error, match=says) as refused:
        believed({**BERT, **extra}, "m")
    assert type(refused.value) is error


def test_how_attention_is_computed_is_not_the_files_to_say() -> None:
    kernel = {"_attn_implementation": "somebody/kernel", "attn_implementation": "somebody/kernel"}
    assert believed({**BERT, **kernel, "text_config": {**kernel, "x": 1}}, "m") == {**BERT, "text_config": {"x": 1}}


def test_without_transformers_one_sentence_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ModelFormatError, match=r"pip install 'dippm\[huggingface\]'"):
        graph_of(write_config(tmp_path / "m", BERT), "16")


def test_notes_and_stored_dtype_reach_the_prediction_and_leave_the_digest_alone() -> None:
    plain = ModelGraph((), (), (), (), batch=1, format="huggingface")
    noted = ModelGraph((), (), (), (), batch=1, format="huggingface", stored_dtype="bfloat16", notes=("a",))
    assert noted.digest == plain.digest
    assert ModelGraph.from_dict(noted.to_dict()) == noted
    assert noted.cast("float16").notes == ("a",)
    case = Case(batch=1)
    first, second = graph_notes(noted, case)
    assert first == "a"
    assert "stored as bfloat16 and priced as float32" in second
    assert list(graph_notes(noted, Case(batch=1, precision=Precision.BF16))) == ["a"]


TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100}
IMAGES = {**TEXT, "image_size": 32, "patch_size": 8, "num_labels": 10}
FAMILIES: list[tuple[Config, tuple[str, ...], int, int]] = [
    (BERT, ("16",), 0, 14),
    ({**TEXT, "model_type": "roberta", "architectures": ["RobertaModel"]}, ("16",), 0, 13),
    (
        {"model_type": "distilbert", "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 100},
        ("16",), 0, 12,
    ),
    (
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 2, "n_head": 2,
         "vocab_size": 100},
        ("16",), 0, 9,
    ),
    (
        {**TEXT, "model_type": "opt", "architectures": ["OPTForCausalLM"], "ffn_dim": 64, "word_embed_proj_dim": 32},
        ("16",), 0, 13,
    ),
    (
        {"model_type": "t5", "architectures": ["T5EncoderModel"], "d_model": 32, "d_ff": 64, "d_kv": 16, "num_heads": 2,
         "num_layers": 2, "vocab_size": 100},
        ("16",), 0, 12,
    ),
    ({**TEXT, "model_type": "llama", "architectures": ["LlamaForCausalLM"]}, ("16",), 0, 15),
    (
        {**TEXT, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 1},
        ("input_ids=16",), 0, 15,
    ),
    ({**IMAGES, "model_type": "vit", "architectures": ["ViTForImageClassification"]}, (), 1, 13),
    (
        {"model_type": "swin", "architectures": ["SwinForImageClassification"], "image_size": 32, "patch_size": 4,
         "window_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 2], "num_labels": 10},
        (), 1, 14,
    ),
    (
        {"model_type": "convnext", "architectures": ["ConvNextForImageClassification"], "num_stages": 2,
         "hidden_sizes": [16, 32], "depths": [1, 1], "num_labels": 10},
        ("3,32,32",), 4, 5,
    ),
    (
        {"model_type": "resnet", "architectures": ["ResNetForImageClassification"], "embedding_size": 16,
         "hidden_sizes": [32, 64], "depths": [1, 1], "num_labels": 10},
        ("3,64,64",), 9, 1,
    ),
]  # fmt: skip
"""Config, inputs, and the convolutions and dense products counted by hand."""


@pytest.mark.parametrize(("config", "inputs", "convs", "denses"), FAMILIES, ids=[f[0]["model_type"] for f in FAMILIES])
def test_families_load(tmp_path: Path, config: Config, inputs: tuple[str, ...], convs: int, denses: int) -> None:
    needs_transformers()
    graph = graph_of(write_config(tmp_path / "m", config), *inputs, batch=3)
    assert graph.format == "huggingface"
    assert resolve(Runtime.AUTO, graph.format).predicted is Runtime.EAGER
    assert all(graph.values[i].spec.shape[0] == 3 for i in graph.inputs)
    assert not [o.target for o in graph.operators if o.kind == "unknown"]
    assert sum(len(o.scope) > 1 for o in graph.operators) > len(graph.operators) / 2
    features = static_features(graph)
    assert (features.convs, features.denses) == (convs, denses)


@pytest.mark.parametrize(
    ("config", "inputs", "parameters"),
    [
        ({"model_type": "bert", "architectures": ["BertModel"]}, ("16",), 109_482_240),
        ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}, ("16",), 124_439_808),
        ({"model_type": "vit", "architectures": ["ViTForImageClassification"], "num_labels": 1000}, (), 86_567_656),
    ],
)
def test_published_sizes(tmp_path: Path, config: Config, inputs: tuple[str, ...], parameters: int) -> None:
    needs_transformers()
    graph = graph_of(write_config(tmp_path / "m", config), *inputs)
    elements = sum(graph.values[i].spec.numel for i in graph.parameter_ids)
    assert elements == pytest.approx(parameters, rel=1e-3)


def test_a_decoder_of_7_billion_goes_through_the_child_without_its_weights(tmp_path: Path) -> None:
    """The child may have 6 GiB; the weights would take 27 GB."""
    needs_transformers()
    folder = write_config(tmp_path / "llama", LLAMA_7B)
    size = 6_738_415_616
    write_weights(folder / "model.safetensors", {"all": ("F16", [size], 2 * size)})
    graph = load_graph_in_child(open_artifact(folder), batch=1, inputs=(parse_input("128"),))
    weights = sum(graph.values[i].spec.nbytes for i in graph.parameter_ids)
    assert weights == pytest.approx(4 * size, rel=1e-4)
    assert graph.stored_dtype == "float16"
    assert [note for note in graph.notes if "prefill" in note] == list(graph.notes), "files and architecture agree"


def test_what_the_config_does_not_say_is_asked_for(tmp_path: Path) -> None:
    needs_transformers()
    bert = write_config(tmp_path / "bert", BERT)
    with pytest.raises(InputShapeError, match=r"--input 128, or model.inputs"):
        graph_of(bert)
    with pytest.raises(InputShapeError, match="1 dimension without the batch, not 3"):
        graph_of(bert, "3,224,224")
    with pytest.raises(InputShapeError, match="64 positions"):
        graph_of(bert, "65")
    with pytest.raises(InputShapeError, match="cannot have dtype"):
        graph_of(bert, "16:float32")
    with pytest.raises(InputShapeError, match="has no input"):
        graph_of(bert, "16", "nonsense=16")
    with pytest.raises(InputShapeError, match=r"--input 3,224,224"):
        graph_of(write_config(tmp_path / "resnet", {"model_type": "resnet"}))


def test_a_model_of_two_inputs_asks_for_the_other_one(tmp_path: Path) -> None:
    needs_transformers()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    config = {
        "model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": 16,
        "text_config": {**sizes, "vocab_size": 100}, "vision_config": {**sizes, "image_size": 32, "patch_size": 8},
    }  # fmt: skip
    folder = write_config(tmp_path / "clip", config)
    with pytest.raises(InputShapeError, match=r"CLIPModel does not run on input_ids alone: .*\(pixel_values, "):
        graph_of(folder, "16")
    assert len(graph_of(folder, "input_ids=16", "pixel_values=3,32,32").inputs) == 2


def test_other_inputs_are_taken_by_name(tmp_path: Path) -> None:
    needs_transformers()
    graph = graph_of(write_config(tmp_path / "m", BERT), "16", "attention_mask=16")
    names = [graph.values[i].name for i in graph.inputs]
    assert names == ["input_ids", "attention_mask"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "no-such-thing"}, "model_type 'no-such-thing' is not known"),
        ({"architectures": ["LlamaForCausalLM"]}, "'LlamaForCausalLM' is no bert model"),
        ({"architectures": ["AutoModel"]}, "'AutoModel' is no bert model"),
        ({"architectures": ["logging"]}, "'logging' is no bert model"),
        ({"architectures": ["os.system"]}, "'os.system' is no bert model"),
    ],
)
def test_an_architecture_is_one_of_transformers_own(tmp_path: Path, change: Config, says: str) -> None:
    needs_transformers()
    with pytest.raises(ModelFormatError, match=says):
        graph_of(write_config(tmp_path / "m", {**BERT, **change}), "16")


def test_notes_say_which_network_was_priced(tmp_path: Path) -> None:
    needs_transformers()
    folder = write_config(tmp_path / "m", {k: v for k, v in BERT.items() if k != "architectures"})
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02never opened")
    notes = " ".join(graph_of(folder, "16").notes)
    assert "BertModel was priced" in notes
    assert "pytorch_model.bin is a pickle and is not opened" in notes


def saved(folder: Path, config: Config) -> dict[str, tuple[int, ...]]:
    """The folder as transformers itself writes it, and the shapes in it."""
    import transformers

    body = transformers.AutoConfig.for_model(**config)
    getattr(transformers, config["architectures"][0])(body).save_pretrained(folder)
    return dict(hf_files.read_weight_files(folder, "saved").shapes)


def rewrite(folder: Path, shapes: dict[str, tuple[int, ...]]) -> Path:
    sized = {name: ("F32", list(shape), 4 * math.prod(shape)) for name, shape in shapes.items()}
    write_weights(folder / "model.safetensors", sized)
    return folder


GPT2: Config = {
    "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": 32, "n_layer": 2, "n_head": 2,
    "vocab_size": 100,
}  # fmt: skip


def test_weights_of_another_model_are_an_error(tmp_path: Path) -> None:
    """A narrower one, half of one, one of the same width, and next to nothing."""
    needs_transformers()
    bert, other = tmp_path / "bert", tmp_path / "other"
    own = saved(bert, BERT)
    layers = {name: shape for name, shape in own.items() if ".layer.1." not in name and "embeddings" not in name}
    for wrong in (
        saved(other, {**BERT, "hidden_size": 16}),
        dict(list(layers.items())[:6]),
        saved(tmp_path / "gpt2", GPT2),
        {"a": (7,)},
    ):
        said = r"are not those of BertForMaskedLM: \d+ of its \d+ tensors are not in them \(first bert\.[\w.]+ of \["
        with pytest.raises(ModelFormatError, match=said):
            graph_of(rewrite(bert, wrong), "16")
    shutil.rmtree(other)
    write_config(other, BERT)
    assert "priced by config.json alone" in " ".join(graph_of(other, "16").notes), "the way out that is named"


def test_weights_that_are_more_less_or_otherwise_named_are_no_error(tmp_path: Path) -> None:
    needs_transformers()
    folder = tmp_path / "bert"
    own = saved(folder, BERT)
    assert graph_of(folder, "16").notes == ()
    assert graph_of(rewrite(folder, {n.removeprefix("bert."): s for n, s in own.items()}), "16").notes == ()
    assert graph_of(rewrite(folder, {f"old.{n}.gamma": s for n, s in own.items()}), "16").notes == ()
    more = " ".join(graph_of(rewrite(folder, {**own, "head": (1000, 100)}), "16").notes)
    assert "the files hold" in more
    assert "not in the files" not in more
    less = {name: shape for name, shape in own.items() if ".layer.1." not in name}
    assert re.search(
        r"the latter are priced \(\d+ of its \d+ tensors are not in the files\)",
        " ".join(graph_of(rewrite(folder, less), "16").notes),
    )


def test_experts_are_put_together_by_transformers(tmp_path: Path) -> None:
    """In the file each expert has its own tensors, in the module all have one."""
    needs_transformers()
    import torch
    import transformers

    from dippm.frontend.hf_weights import notes_on_weights

    config: Config = {
        "model_type": "mixtral", "architectures": ["MixtralForCausalLM"], "hidden_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 64, "vocab_size": 100,
        "num_local_experts": 4,
    }  # fmt: skip
    shapes = saved(tmp_path / "mixtral", config)
    assert sum(".experts." in name for name in shapes) == 12
    with torch.device("meta"):
        module = transformers.MixtralForCausalLM(transformers.AutoConfig.for_model(**config))
    stored = hf_files.read_weight_files(tmp_path / "mixtral", "mixtral")
    assert list(notes_on_weights(tmp_path / "mixtral", stored, module, "MixtralForCausalLM", "mixtral")) == []


def test_the_hub_is_as_the_process_had_it(tmp_path: Path) -> None:
    needs_transformers()
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    graph_of(write_config(tmp_path / "m", BERT), "16")
    assert before is constants.HF_HUB_OFFLINE
