"""How ONNX Runtime is set for a case: the provider's and the session's options, and how the file was exported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

GRAPH_LEVELS = {
    "all": "ORT_ENABLE_ALL", "extended": "ORT_ENABLE_EXTENDED", "basic": "ORT_ENABLE_BASIC", "none": "ORT_DISABLE_ALL"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class OrtOptions:
    """Options by ONNX Runtime's own names and with its own defaults; those of the export last."""

    arena_extend_strategy: str = "kNextPowerOfTwo"
    """`kNextPowerOfTwo`: each extension of the arena is at least twice the one before; or `kSameAsRequested`."""
    cudnn_conv_algo_search: str = "EXHAUSTIVE"
    """`EXHAUSTIVE`, `HEURISTIC` or `DEFAULT`. With cuDNN 9 these are the front end's heuristic modes B, A and fallback:
    nothing is timed."""
    cudnn_conv_use_max_workspace: str = "1"
    use_tf32: str = "1"
    """Products and convolutions of fp32 in TF32, both: other than PyTorch's fp32."""
    graph_optimization_level: str = "all"
    enable_mem_pattern: str = "1"
    """From the second pass on the activations lie in one block, laid out after the first."""
    exporter: str = "torchscript"
    """`torchscript` (`torch.onnx.export(dynamo=False)`) or `dynamo`."""
    batch_axis: str = "fixed"
    """`fixed`: the file says the batch; or `dynamic`."""

    @classmethod
    def of(cls, options: Mapping[str, str]) -> OrtOptions:
        """The defaults with a case's options. Raises ValueError for a name that is none."""
        known = {field.name for field in fields(cls)}
        if unknown := set(options) - known:
            raise ValueError(f"options {', '.join(sorted(unknown))}: known are {', '.join(sorted(known))}")
        return cls(**options)

    def provider(self, limit_bytes: int | None = None) -> dict[str, str]:
        """What the CUDA provider is given; `limit_bytes` is its `gpu_mem_limit`."""
        limit = {} if limit_bytes is None else {"gpu_mem_limit": str(limit_bytes)}
        return {
            "device_id": "0",
            "arena_extend_strategy": self.arena_extend_strategy,
            "cudnn_conv_algo_search": self.cudnn_conv_algo_search,
            "cudnn_conv_use_max_workspace": self.cudnn_conv_use_max_workspace,
            "use_tf32": self.use_tf32,
            **limit,
        }

    def described(self) -> dict[str, dict[str, str]]:
        """`provider_options` and `session_options` as they stand in a row."""
        session = {"graph_optimization_level": self.graph_optimization_level, "batch_axis": self.batch_axis}
        return {
            "provider_options": {name: value for name, value in self.provider().items() if name != "device_id"},
            "session_options": {**session, "enable_mem_pattern": self.enable_mem_pattern, "intra_op_num_threads": "1"},
        }

    def session(self, onnxruntime: Any) -> Any:
        """The session's options. One thread on the host: what stays on the CPU is not what is measured."""
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(
            onnxruntime.GraphOptimizationLevel, GRAPH_LEVELS[self.graph_optimization_level]
        )
        options.enable_mem_pattern = self.enable_mem_pattern == "1"
        options.intra_op_num_threads = 1
        options.log_severity_level = 2
        return options
