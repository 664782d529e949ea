"""Hugging Face folders as large as real ones and as small as their headers: weights are holes."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

LLAMA_7B: dict[str, Any] = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "float16", "hidden_size": 4096,
    "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "vocab_size": 32000, "max_position_embeddings": 4096, "tie_word_embeddings": False,
}  # fmt: skip


def llama_shapes(config: dict[str, Any]) -> dict[str, list[int]]:
    """Tensors of a Llama checkpoint, as it names them."""
    width, inner, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    shapes = {"model.embed_tokens.weight": [words, width]}
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        shapes |= {f"{at}self_attn.{p}_proj.weight": [width, width] for p in "qkvo"}
        shapes |= {f"{at}mlp.{p}_proj.weight": [inner, width] for p in ("gate", "up")}
        shapes |= {f"{at}mlp.down_proj.weight": [width, inner]}
        shapes |= {f"{at}{p}_layernorm.weight": [width] for p in ("input", "post_attention")}
    return shapes | {"model.norm.weight": [width], "lm_head.weight": [words, width]}


def write_llama(folder: Path, config: dict[str, Any], *, shards: int) -> int:
    """`config.json`, an index, and FP16 weights in so many files; returns their bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    tensors = list(llama_shapes(config).items())
    placed: dict[str, str] = {}
    total = 0
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        end = 0
        for tensor, shape in tensors[shard::shards]:
            begin, end = end, end + 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
            header[tensor] = {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
            placed[tensor] = name
        text = json.dumps(header).encode()
        with (folder / name).open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            file.truncate(8 + len(text) + end)
        total += 8 + len(text) + end
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total
