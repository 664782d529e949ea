"""Profiles and devices: names in and out of every table, and what labels say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dippm.errors import UnknownDevice, UnknownProfile
from dippm.profiles import (
    FULL_GPU,
    advertised_profiles,
    device_from_labels,
    known_devices,
    parse_profile,
    product_name,
    profile_of_resource,
    resolve_device,
    resource_name,
)


@pytest.mark.parametrize(
    ("profile", "resource"),
    [
        ("1g.5gb", "nvidia.com/mig-1g.5gb"),
        ("1g.5gb+me", "nvidia.com/mig-1g.5gb.me"),
        ("1g.12gb", "nvidia.com/mig-1g.12gb"),
        ("1g.24gb+gfx", "nvidia.com/mig-1g.24gb.gfx"),
        ("1g.24gb+me.all", "nvidia.com/mig-1g.24gb.me.all"),
        ("1g.24gb-me", "nvidia.com/mig-1g.24gb-me"),
        ("3g.139gb", "nvidia.com/mig-3g.139gb"),
    ],
)
def test_a_profile_and_its_resource_name_each_other(profile: str, resource: str) -> None:
    assert resource_name(profile) == resource
    assert profile_of_resource(resource) == profile


def test_the_whole_card_is_the_plain_gpu_resource() -> None:
    assert resource_name(FULL_GPU) == "nvidia.com/gpu"


@pytest.mark.parametrize("resource", ["nvidia.com/gpu", "nvidia.com/mig-1g.5gb.shared", "nvidia.com/mig-", "cpu"])
def test_what_is_no_slice_of_its_own_is_no_profile(resource: str) -> None:
    assert profile_of_resource(resource) is None


def test_a_compute_instance_parses_but_has_no_resource() -> None:
    assert parse_profile("1c.3g.20gb").compute_instance == 1
    with pytest.raises(UnknownProfile, match="compute instance"):
        resource_name("1c.3g.20gb")


@pytest.mark.parametrize("name", ["", "1g", "5gb", "0g.5gb", "1g.5gb me", "small"])
def test_no_profile_name_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(UnknownProfile, match=r"1g\.5gb"):
        parse_profile(name)


@pytest.mark.parametrize(
    ("said", "product"),
    [
        ("A100", "A100-SXM4-40GB"),
        ("A100-40GB", "A100-SXM4-40GB"),
        ("A100-80GB", "A100-SXM4-80GB"),
        ("NVIDIA-A100-SXM4-80GB", "A100-SXM4-80GB"),
        ("NVIDIA A100-PCIE-40GB", "A100-PCIE-40GB"),
        ("nvidia-a100-sxm4-40gb-mig-1g.5gb", "A100-SXM4-40GB"),
        ("h100", "H100-80GB-HBM3"),
        ("H200-141GB", "H200"),
    ],
)
def test_a_device_is_found_by_product_entry_or_alias(said: str, product: str) -> None:
    assert resolve_device(said.upper()).product == product
    assert resolve_device(said).product == product


def test_the_product_loses_what_feature_discovery_appends() -> None:
    assert product_name("NVIDIA-A100-SXM4-40GB-MIG-1g.5gb-SHARED") == "A100-SXM4-40GB"


def test_an_unknown_device_lists_near_matches_in_one_sentence() -> None:
    with pytest.raises(UnknownDevice) as caught:
        resolve_device("A100-SXM-40G")
    assert "A100-SXM4-40GB" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(UnknownDevice, match="H200"):
        resolve_device("")


def test_every_device_has_its_profiles_smallest_first() -> None:
    for device in known_devices().values():
        sizes = [p.usable_mib for p in device.profiles]
        assert sizes == sorted(sizes)
        assert device.profiles[-1].compute == max(p.compute for p in device.profiles)
        assert device.full_usable_mib is not None
        assert device.with_full_gpu()[-1].name == FULL_GPU


def test_the_same_name_on_two_products_is_two_sizes() -> None:
    assert resolve_device("A100-40GB").profile("1g.10gb").usable_mib == 9856
    assert resolve_device("A100-80GB").profile("1g.10gb").usable_mib == 9728


def test_an_unknown_profile_names_those_that_there_are() -> None:
    with pytest.raises(UnknownProfile, match=r"A30 has no MIG profile '1g.5gb': it has 1g.6gb, 2g.12gb, 4g.24gb"):
        resolve_device("A30").profile("1g.5gb")


MIXED = {
    "nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB",
    "nvidia.com/gpu.memory": "40960",
    "nvidia.com/mig-1g.5gb.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb",
    "nvidia.com/mig-1g.5gb.memory": "4750",
    "nvidia.com/mig-1g.5gb.count": "7",
    "nvidia.com/mig-1g.5gb.slices.gi": "1",
    "nvidia.com/mig-1g.5gb.me.memory": "4751",
    "nvidia.com/mig-2g.10gb.count": "1",
    "nvidia.com/mig-2g.10gb.multiprocessors": "28",
}


def test_mixed_labels_outrank_the_table_and_silence_keeps_it() -> None:
    device = device_from_labels(MIXED)
    assert device is not None
    assert device.product == "A100-SXM4-40GB"
    assert device.profile("1g.5gb").usable_mib == 4750
    assert device.profile("1g.5gb+me").usable_mib == 4751
    assert device.profile("2g.10gb").usable_mib == 9856
    assert set(advertised_profiles(MIXED)) == {"1g.5gb", "1g.5gb+me", "2g.10gb"}


def test_single_labels_name_the_slice_in_the_product() -> None:
    labels = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", "nvidia.com/gpu.memory": "4864"}
    profiles = advertised_profiles(labels)
    assert [p.usable_mib for p in profiles.values()] == [4864]
    device = device_from_labels(labels)
    assert device is not None
    assert device.product == "A100-SXM4-40GB"


@pytest.mark.parametrize("product", ["NVIDIA-A100-SXM4-40GB-MIG-INVALID", "NVIDIA-A100-SXM4-40GB-MIG-1g.5gb-SHARED"])
def test_broken_and_shared_layouts_advertise_nothing(product: str) -> None:
    assert advertised_profiles({"nvidia.com/gpu.product": product, "nvidia.com/gpu.memory": "4864"}) == {}


def test_a_product_and_profile_in_no_table_are_taken_from_the_labels() -> None:
    device = device_from_labels(
        {
            "nvidia.com/gpu.product": "NVIDIA-GH200-480GB",
            "nvidia.com/mig-1g.12gb.memory": "11008",
            "nvidia.com/mig-3g.48gb.count": "1",
            "nvidia.com/mig-3g.48gb.slices.gi": "3",
        }
    )
    assert device is not None
    assert device.product == "GH200-480GB"
    assert [(p.name, p.usable_mib, p.compute) for p in device.profiles] == [
        ("1g.12gb", 11008, 1),
        ("3g.48gb", 43008, 3),
    ]


def test_a_node_without_gpu_labels_has_no_device() -> None:
    assert device_from_labels({"kubernetes.io/hostname": "a"}) is None


def test_a_size_guessed_from_a_name_is_under_every_known_size_of_that_name() -> None:
    from dippm.profiles import Profile

    for device in known_devices().values():
        for profile in device.profiles:
            assert Profile.from_name(profile.name).usable_mib <= profile.usable_mib


def test_the_choice_imports_neither_torch_nor_tvm() -> None:
    code = (
        "import sys, dippm.policy, dippm.profiles; print(sorted({'torch','tvm','numpy','pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
