"""`dippm predict`: what a model file needs.

The file is parsed in this process: it is the user's own, and starting a child would cost a second. Nothing in it is
executed either way unless `--trust-pickle` says so. The operator, which reads files of others, parses in a child.
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from dippm.artifact import open_artifact
from dippm.case import Allocator, Precision, Runtime
from dippm.cli import render
from dippm.cli.numbers import not_negative, percent, positive, whole
from dippm.errors import InputShapeError
from dippm.policy import Policy, Rule
from dippm.prediction import Prediction

EPILOG = """\
examples:
  dippm predict resnet50.onnx --batch 32
  dippm predict vgg16.pt --framework pytorch --batch 32 --input 3,224,224 --device A100
  dippm predict bert.pt2 --batch 8 --input ids=128:int64 --precision fp16 --json
  dippm predict ./Llama-2-7b-hf --batch 1 --input 512 --precision fp16
  dippm predict weights.safetensors --constructor timm:resnet50 --batch 32
  dippm predict ./ppocr_det --framework paddle --batch 8
  dippm predict resnet50.onnx --batch 32 --max-latency 20 --allow 1g.5gb --allow 2g.10gb

exit code: 0 where there is a prediction, also of a model that fits no profile (mig_profile is null
then, and a note says why); 2 where there is none, with one sentence on standard error that says
what to put right.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dippm predict`."""
    parser.epilog = EPILOG
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="model file or folder on this machine: ONNX, .pt2, TorchScript, Hugging Face and others "
        "(see dippm frameworks)",
    )
    parser.add_argument(
        "--framework",
        default="auto",
        metavar="NAME",
        help="format of the file, as dippm frameworks lists it, or pytorch or tensorflow (default: auto, by content)",
    )
    parser.add_argument(
        "--constructor",
        default="",
        metavar="NAME",
        help="what weights alone (safetensors) are of: timm:resnet50 or torchvision:resnet50",
    )
    parser.add_argument("--batch", type=whole, metavar="N", help="batch size")
    parser.add_argument(
        "--input",
        action="append",
        metavar="SHAPE",
        help="shape of an input without the batch, as in 3,224,224 or ids=128:int64; once for each input "
        "(may be left out where the file says it)",
    )
    parser.add_argument("--precision", choices=[p.value for p in Precision], default="fp32", help="default: fp32")
    parser.add_argument(
        "--runtime", choices=[r.value for r in Runtime], default="auto", help="what runs the model (default: by format)"
    )
    parser.add_argument(
        "--allocator", choices=[a.value for a in Allocator], default="default", help="of PyTorch's CUDA memory"
    )
    parser.add_argument(
        "--device", default="A100", metavar="NAME", help="GPU product (default: A100, the A100-SXM4-40GB)"
    )
    choice = parser.add_argument_group("choice of the profile")
    choice.add_argument(
        "--rule", choices=[r.value for r in Rule], default="fit", help="paper: its equation 2 (default: fit)"
    )
    choice.add_argument(
        "--risk", type=percent, default=1.0, metavar="PERCENT", help="risk of out-of-memory (default: 1)"
    )
    choice.add_argument(
        "--headroom", type=not_negative, default=0.0, metavar="MIB", help="kept free on top (default: 0)"
    )
    choice.add_argument("--processes", type=whole, default=1, metavar="N", help="processes that each load the model")
    choice.add_argument("--max-latency", type=positive, metavar="MS", help="pass over slower profiles")
    choice.add_argument("--allow", action="append", metavar="PROFILE", help="only these profiles; once for each")
    choice.add_argument("--allow-full-gpu", action="store_true", help="take a whole card when no slice will do")
    parser.add_argument("--digest", metavar="SHA256", help="refuse the file unless its content has this digest")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument(
        "--trust-pickle", action="store_true", help="run the code in a pickled module: only for files of your own"
    )


def run(args: argparse.Namespace) -> int:
    """Predicts and prints."""
    from dippm.api import predict

    if args.batch is None:
        open_artifact(args.model, framework=args.framework, constructor=args.constructor)  # a wrong file is said first
        raise InputShapeError("the batch size is missing: say it with --batch, for example --batch 32")
    prediction = predict(
        args.model,
        batch=args.batch,
        input=args.input,
        framework=args.framework,
        device=args.device,
        precision=args.precision,
        runtime=args.runtime,
        allocator=args.allocator,
        policy=policy(args),
        digest=args.digest,
        trust_pickle=args.trust_pickle,
        constructor=args.constructor,
    )
    if args.json:
        print(json.dumps(to_dict(prediction), indent=2))
        for note in prediction.notes:
            print(f"note: {note}", file=sys.stderr)
    else:
        print(to_text(prediction))
    return 0


def policy(args: argparse.Namespace) -> Policy:
    """The choice's arguments as a policy. Raises UnknownProfile for a profile that the device lacks."""
    from dippm.profiles import resolve_device

    device = resolve_device(args.device)
    allowed = tuple(device.profile(name).name for name in args.allow) if args.allow else None
    return Policy(
        rule=Rule(args.rule),
        processes=args.processes,
        headroom_mib=args.headroom,
        oom_risk_percent=args.risk,
        max_latency_ms=args.max_latency,
        allowed_profiles=allowed,
        allow_full_gpu=args.allow_full_gpu,
    )


def to_dict(p: Prediction) -> dict[str, Any]:
    """The object that `--json` prints. Memory in MiB, times in ms, energy in J."""
    return {
        "memory_mib": round(p.memory_mib, 1),
        "required_mib": round(p.required_mib, 1),
        "required_upper_mib": round(p.required_upper_mib, 1),
        "allocated_mib": round(p.allocated_mib, 1),
        "weights_mib": round(p.weights_mib, 1),
        "latency_ms": round(p.latency_ms, 4),
        "device_ms": round(p.device_ms, 4),
        "host_ms": round(p.host_ms, 4),
        "energy_j": round(p.energy_j, 4),
        "runtime": p.runtime,
        "mig_profile": p.mig_profile,
        "resource": p.resource,
        "device": p.device,
        "basis": p.basis.value,
        "candidates": [
            {
                "profile": c.profile,
                "usable_mib": c.usable_mib,
                "fits": c.fits,
                "utilization": round(c.utilization, 4),
                "latency_ms": round(c.latency_ms, 4),
            }
            for c in p.candidates
        ],
        "static_features": dict(p.static_features),
        "digest": p.digest,
        "seconds": {stage: round(value, 4) for stage, value in p.seconds.items()},
    }


def to_text(p: Prediction) -> str:
    """The same for people: the answer first, then the profiles, then what to know about the figures."""
    slice_ = f"{p.mig_profile}  ({p.resource}: 1)" if p.mig_profile else "none fits"
    head = render.facts(
        [
            ("MIG profile", slice_),
            ("device", p.device),
            ("case", f"batch {p.batch}, {p.precision}, {p.runtime}, {p.basis.value}"),
            (
                "memory",
                f"{render.mib(p.memory_mib)} MiB as nvidia-smi shows it, weights {render.mib(p.weights_mib)} MiB",
            ),
            ("required", f"{render.mib(p.required_mib)} MiB, at most {render.mib(p.required_upper_mib)} MiB"),
            ("latency", f"{render.ms(p.latency_ms)} ms (device {render.ms(p.device_ms)}, host {render.ms(p.host_ms)})"),
            ("energy", f"{p.energy_j:,.3f} J"),
        ]
    )
    rows = [
        [
            ("* " if c.profile == p.mig_profile else "  ") + c.profile,
            render.mib(c.usable_mib),
            render.mib(c.required_upper_mib),
            "yes" if c.fits else "no",
            f"{100 * c.utilization:.0f} %",
            render.ms(c.latency_ms),
        ]
        for c in p.candidates
    ]
    body = render.table(["  PROFILE", "USABLE MiB", "NEEDS AT MOST", "FITS", "USED", "LATENCY ms"], rows)
    notes = "".join(f"\nnote: {note}" for note in p.notes)
    return f"{head}\n\n{body}{notes and chr(10)}{notes}\n\n{p.seconds.get('total', 0):.2f} s"
