"""`dippm profiles`: the catalogue."""

from __future__ import annotations

import argparse
import json
from typing import Any

import yaml

from dippm.cli import render
from dippm.profiles import Device, known_devices, resolve_device

EPILOG = """\
examples:
  dippm profiles
  dippm profiles --device A100
  dippm profiles --device H200 -o yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `dippm profiles`."""
    parser.epilog = EPILOG
    parser.add_argument(
        "--device", metavar="NAME", help="one device: a product, a catalogue entry, or A100 (default: all)"
    )
    shape = parser.add_mutually_exclusive_group()
    shape.add_argument("-o", "--output", choices=("table", "json", "yaml"), default="table", help="default: table")
    shape.add_argument("--json", action="store_const", const="json", dest="output", help="the same as -o json")
    shape.add_argument("--yaml", action="store_const", const="yaml", dest="output", help="the same as -o yaml")


def run(args: argparse.Namespace) -> int:
    """Prints the devices asked for."""
    devices = [resolve_device(args.device)] if args.device else list(known_devices().values())
    if args.output == "json":
        print(json.dumps([to_dict(d) for d in devices], indent=2))
    elif args.output == "yaml":
        print(yaml.safe_dump([to_dict(d) for d in devices], sort_keys=False), end="")
    else:
        print(_table(devices))
    return 0


def to_dict(device: Device) -> dict[str, Any]:
    """One device for JSON and YAML."""
    return {
        "device": device.product,
        "entry": device.entry,
        "full_gpu_usable_mib": device.full_usable_mib,
        "profiles": [
            {
                "profile": p.name,
                "resource": p.resource,
                "usable_mib": p.usable_mib,
                "compute_slices": p.compute,
                "memory_eighths": p.memory_eighths,
            }
            for p in device.profiles
        ],
    }


def _table(devices: list[Device]) -> str:
    rows = [
        [
            d.product if first else "",
            p.name,
            p.resource,
            render.mib(p.usable_mib),
            str(p.compute),
            f"{p.memory_eighths}/8",
        ]
        for d in devices
        for first, p in ((p is d.profiles[0], p) for p in d.profiles)
    ]
    return render.table(["DEVICE", "PROFILE", "RESOURCE", "USABLE MiB", "COMPUTE", "MEMORY"], rows, left=3)
