"""`spec.model` and what is said about its use: where the file is, what goes into it, how a decoder runs."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from dippm_operator.resource.base import Int, Part
from dippm_operator.resource.names import URI_SCHEMES

URI_PATTERN = r"^((https?|s3|gs|hf|oci|azure|abfss?|wasbs?|pvc)://[^ ]+|file:[^ ]+)$"
URI_MESSAGE = "must be a URI that starts with one of " + ", ".join(f"{scheme}://" for scheme in URI_SCHEMES)
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
DTYPES = "^(float64|float32|float16|bfloat16|int64|int32|int16|int8|uint8|bool)$"


class ModelFormat(StrEnum):
    """What kind of file the model is; `auto` looks at the content."""

    AUTO = "auto"
    ONNX = "onnx"
    PYTORCH = "pytorch"
    TENSORFLOW = "tensorflow"
    PADDLE = "paddle"
    HUGGINGFACE = "huggingface"


class SecretReference(Part):
    """A Secret in the InferenceJob's own namespace."""

    name: Annotated[str, Field(min_length=1, max_length=253)]
    """Name of the Secret."""


class ModelInput(Part):
    """One input of the model, without the batch dimension."""

    name: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    """Name of the input; may be left out when the model has only one."""
    shape: Annotated[tuple[Annotated[Int, Field(ge=1, le=1_000_000_000)], ...], Field(max_length=16)]
    """Elements per dimension, without the batch: [3, 224, 224]."""
    dtype: Annotated[str, Field(pattern=DTYPES, max_length=16)] | None = None
    """Element type; the model's own when left out."""


class Model(Part):
    """The model file: where it is and what is known about it."""

    uri: Annotated[
        str,
        Field(
            min_length=1,
            max_length=2048,
            pattern=URI_PATTERN,
            json_schema_extra={
                "x-kubernetes-validations": [{"rule": f"self.matches('{URI_PATTERN}')", "message": URI_MESSAGE}]
            },
        ),
    ]
    """Where the file or folder is: https http s3 gs hf oci azure abfs wasb pvc file, as KServe spells them."""
    format: ModelFormat = ModelFormat.AUTO
    """Kind of file; auto looks at its content."""
    digest: Annotated[str, Field(pattern=DIGEST_PATTERN, max_length=71)] | None = None
    """sha256:<64 hex digits> of the whole file; verified when given."""
    secret_ref: SecretReference | None = None
    """Secret with the credentials for the URI, in the same namespace."""
    resolve_interval_minutes: Annotated[Int, Field(ge=1, le=525_600)] = 60
    """How often the URI is asked again, conditionally: a new upload is a new prediction."""
    inputs: Annotated[
        tuple[ModelInput, ...], Field(max_length=32, json_schema_extra={"x-kubernetes-list-type": "atomic"})
    ] = ()
    """Shapes of the inputs, without the batch; may be left out when the file has them."""


class Generation(Part):
    """How a decoder generates: what is required is the larger of prefill and one step against a full cache."""

    max_context_tokens: Annotated[Int, Field(ge=1, le=100_000_000)]
    """Tokens of the longest sequence, prompt and answer together."""
    max_new_tokens: Annotated[Int, Field(ge=1, le=100_000_000)]
    """Tokens of the longest answer."""
