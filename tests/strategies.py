"""Hypothesis strategies that more than one test module draws from. Append only."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from dippm.graph import ModelGraph, Operator, TensorSpec, Value, ValueKind
from dippm_operator.resource.names import (
    DEFAULT_CONTAINER_ANNOTATION,
    INJECT_ANNOTATION,
    JOB_LABEL,
    SIZING_ANNOTATION,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)
"""Any JSON document, small."""

_quantities = st.sampled_from(["1", 1, "2", "0"])
_resources = st.dictionaries(
    st.sampled_from(["cpu", "nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "nvidia.com/mig-2g.10gb", "mig.das.com/1g.5gb"]),
    _quantities,
    max_size=3,
)
_containers = st.fixed_dictionaries(
    {"name": st.sampled_from(["server", "proxy", "cache", "a/b~c"]), "image": st.just("registry.example/i:1")},
    optional={
        "resources": st.none() | st.fixed_dictionaries({}, optional={"limits": _resources, "requests": _resources}),
        "env": st.lists(st.sampled_from([{"name": "PORT", "value": "80"}, {"name": "PYTORCH_ALLOC_CONF"}]), max_size=2),
        "args": st.lists(st.sampled_from(["-tp", "2", "--port"]), max_size=3),
    },
)
_annotations = st.fixed_dictionaries(
    {},
    optional={
        DEFAULT_CONTAINER_ANNOTATION: st.sampled_from(["server", "absent"]),
        INJECT_ANNOTATION: st.sampled_from(["false", "true"]),
        SIZING_ANNOTATION: st.sampled_from(
            ["no json", "[]", json.dumps({"container": "server", "resource": "nvidia.com/mig-2g.10gb"})]
        ),
        "other/annotation~x": st.just("kept"),
    },
)


@st.composite
def labelled_pods(draw: st.DrawFn, job: str = "resnet50") -> dict[str, Any]:
    """Pods that carry the label of an InferenceJob, in every state that other webhooks may leave them in."""
    pod: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": "web-", "labels": {JOB_LABEL: job}},
        "spec": {"containers": draw(st.lists(_containers, max_size=3, unique_by=lambda c: c["name"]))},
    }
    if draw(st.booleans()):
        pod["metadata"]["annotations"] = draw(st.none() | _annotations)
    if draw(st.booleans()):
        pod["spec"]["tolerations"] = draw(st.none() | st.just([{"operator": "Exists"}]) | st.just([]))
    return pod


@st.composite
def inference_jobs(draw: st.DrawFn, name: str = "resnet50", namespace: str = "vision") -> dict[str, Any]:
    """Valid InferenceJobs as the API server hands them out, predicted or not, with every policy of sizing."""
    profiles = st.sampled_from(["1g.5gb", "2g.10gb", "1g.5gb+me"])
    policy = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "mode": st.sampled_from(["Auto", "Recommend"]),
                "existingRequest": st.sampled_from(["Keep", "Replace"]),
                "allocator": st.sampled_from(["AsIs", "Expandable"]),
                "onUnknown": st.sampled_from(["Allow", "Deny"]),
                "fallbackProfile": profiles,
            },
        )
    )
    if "fallbackProfile" in policy and draw(st.booleans()):
        policy["onUnknown"] = "Fallback"
    body: dict[str, Any] = {
        "apiVersion": "dippm.dev/v1alpha1",
        "kind": "InferenceJob",
        "metadata": {"name": name, "namespace": namespace, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {
            "model": {"uri": "https://models.example/m.onnx"},
            "batchSize": draw(st.integers(1, 512)),
            "policy": policy,
            "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        },
    }
    if draw(st.booleans()):
        profile = draw(profiles | st.just("None"))
        recommendation: dict[str, Any] = {
            "profile": profile,
            "reason": "Chosen",
            "tolerateGPUTaint": draw(st.booleans()),
        }
        if profile != "None":
            recommendation["resource"] = "nvidia.com/mig-" + profile.replace("+", ".")
        body["status"] = {"recommendation": recommendation}
    return body


@st.composite
def model_graphs(draw: st.DrawFn, max_operators: int = 24) -> ModelGraph:
    """Small graphs of every shape of data flow: branches, views, in-place results, several outputs, module scopes."""
    sizes = st.sampled_from([1, 100, 128, 70_000, 262_144, 262_145, 1_000_000, 3_000_000, 5_300_000])
    values = [Value(TensorSpec((draw(sizes),), "float32"), ValueKind.INPUT)]
    values += [Value(TensorSpec((n,), "float32"), ValueKind.PARAMETER) for n in draw(st.lists(sizes, max_size=6))]
    operators: list[Operator] = []
    blocks = draw(st.lists(st.integers(0, 3), min_size=1, max_size=max_operators))
    for index, block in enumerate(sorted(blocks)):
        inputs = tuple(draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3)))
        alias = draw(st.sampled_from([None, None, None, inputs[0]]))
        spec = values[alias].spec if alias is not None else TensorSpec((draw(sizes),), "float32")
        name = draw(st.sampled_from(["x", "y", "outs"]))
        line = draw(st.sampled_from([f"{name} = self.layer(x)", f"x = x + {name}", "outs.append(self.pool(y))", ""]))
        source = f"block.py:{index}: {line}\nmodel.py:{block}: x = self.block{block}(x)" if line else ""
        operators.append(
            Operator(
                draw(st.sampled_from(["conv2d", "linear", "add", "relu", "reshape", "dropout"])),
                "aten.call",
                inputs,
                (len(values),),
                scope=("", f"block{block}"),
                source=source,
            )
        )
        values.append(Value(spec, ValueKind.RESULT, index, alias))
    outputs = tuple(draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=2)))
    return ModelGraph(tuple(values), tuple(operators), (0,), outputs, batch=1)
