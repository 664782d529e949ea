"""The control plane that the other tests stand on: it answers, refuses and runs admission."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.controlplane


def test_a_pod_can_be_created_without_a_controller_manager(control_plane, namespace):
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }
    made = control_plane.create(f"/api/v1/namespaces/{namespace}/pods", pod)
    assert made["metadata"]["uid"]


def test_a_refusal_carries_its_code_and_sentence(control_plane, namespace):
    with pytest.raises(Exception, match='pods "nobody" not found') as refused:
        control_plane.get(f"/api/v1/namespaces/{namespace}/pods/nobody")
    assert refused.value.code == 404


def test_the_kubeconfig_leads_to_the_same_server(control_plane):
    import yaml

    config = yaml.safe_load(control_plane.kubeconfig.read_text())
    assert config["clusters"][0]["cluster"]["server"] == control_plane.url
