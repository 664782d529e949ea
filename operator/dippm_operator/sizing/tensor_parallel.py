"""Does a container ask for tensor parallelism? A MIG slice is one device: two of them are not a bigger one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_FLAGS = ("--tensor-parallel-size", "--tensor_parallel_size", "-tp", "--num-shard", "--tp-size")
"""As vLLM, text-generation-inference and SGLang spell it."""


def tensor_parallel_size(container: Mapping[str, Any]) -> int:
    """The degree that the container's command and arguments ask for; 1 where they say nothing."""
    words: list[str] = []
    for section in ("command", "args"):
        for argument in container.get(section) or []:
            words += str(argument).split()  # `sh -c "vllm serve ... -tp 2"` is one argument
    for word, following in zip(words, [*words, ""][1:], strict=True):
        flag, equals, value = word.partition("=")
        if flag in _FLAGS:
            number = value if equals else following
            if number.isdecimal():
                return int(number)
    return 1
