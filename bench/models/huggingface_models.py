"""Hugging Face folders: `config.json` and safetensors files whose data is a hole.

    python bench/models/huggingface_models.py list
    python bench/models/huggingface_models.py make NAME FOLDER

The header of `model.safetensors` names every tensor of the architecture with its shape and its place; the file has its
full size, no block of which was ever written.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Folder:
    """One folder: a class of transformers, its config, and the input that no file says."""

    name: str
    architecture: str
    config: dict[str, Any] = field(default_factory=dict)
    """What differs from the defaults of its config class."""
    inputs: tuple[str, ...] = ()
    """As `dippm predict --input` takes them."""
    dtype: str = "F16"
    """What the weights are stored as."""
    batch: int = 1


_7B = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32}
FOLDERS = (
    Folder("llama-2-7b", "LlamaForCausalLM", {**_7B, "intermediate_size": 11008, "vocab_size": 32000}, ("512",)),
    Folder(
        "mistral-7b", "MistralForCausalLM",
        {**_7B, "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32000}, ("512",), "BF16",
    ),
    Folder(
        "qwen2-0.5b", "Qwen2ForCausalLM",
        {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
         "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True}, ("512",), "BF16",
    ),
    Folder(
        "phi-3-mini", "Phi3ForCausalLM",
        {"hidden_size": 3072, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
         "intermediate_size": 8192, "vocab_size": 32064}, ("512",), "BF16",
    ),
    Folder("gpt2", "GPT2LMHeadModel", {}, ("512",), "F32"),
    Folder("opt-125m", "OPTForCausalLM", {}, ("512",)),
    Folder("bert-base-uncased", "BertForSequenceClassification", {}, ("128",), "F32", 8),
    Folder("distilbert-base", "DistilBertForMaskedLM", {}, ("128",), "F32", 8),
    Folder(
        "roberta-base", "RobertaForSequenceClassification", {"vocab_size": 50265, "max_position_embeddings": 514},
        ("128",), "F32", 8,
    ),
    Folder("t5-small", "T5ForConditionalGeneration", {}, ("128",), "F32", 8),
    Folder("whisper-tiny", "WhisperForConditionalGeneration", {}, ("80,3000",), "F32", 8),
    Folder("vit-base-patch16-224", "ViTForImageClassification", {}, (), "F32", 8),
    Folder("swin-tiny", "SwinForImageClassification", {}, (), "F32", 8),
    Folder("resnet-50", "ResNetForImageClassification", {}, ("3,224,224",), "F32", 8),
    Folder("convnext-tiny-224", "ConvNextForImageClassification", {}, ("3,224,224",), "F32", 8),
    Folder("dinov2-base", "Dinov2Model", {"image_size": 224}, (), "F32", 8),
)  # fmt: skip
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


def make(wanted: Folder, path: Path) -> None:
    """Write the folder."""
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    kind = getattr(transformers, wanted.architecture)
    config = kind.config_class(**wanted.config)
    config.architectures = [wanted.architecture]
    with torch.device("meta"), no_init_weights():
        model = kind(config)
    model.tie_weights()
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in model.named_parameters():  # a tied parameter comes once, as in a saved file
        start, end = end, end + tensor.numel() * _BYTES[wanted.dtype]
        header[name] = {"dtype": wanted.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    path.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(path)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


if __name__ == "__main__":
    if sys.argv[1] == "list":
        print(json.dumps([{"name": f.name, "inputs": f.inputs, "batch": f.batch} for f in FOLDERS]))
    else:
        make(next(f for f in FOLDERS if f.name == sys.argv[2]), Path(sys.argv[3]))
