"""The chart on a real API server, by Helm's own library: install, upgrade, uninstall, and what each account may do."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest
from tests.chart import CHART, objects

pytestmark = pytest.mark.controlplane

RELEASE = "chart-dippm"
"""A name that no other test uses: roles and webhook configurations are the cluster's."""
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferencejobs.dippm.dev"
MUTATING = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/chart-dippm"
PLACES = {
    "ServiceAccount": "/api/v1/namespaces/{namespace}/serviceaccounts",
    "Service": "/api/v1/namespaces/{namespace}/services",
    "Deployment": "/apis/apps/v1/namespaces/{namespace}/deployments",
    "PodDisruptionBudget": "/apis/policy/v1/namespaces/{namespace}/poddisruptionbudgets",
    "Role": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/roles",
    "RoleBinding": "/apis/rbac.authorization.k8s.io/v1/namespaces/{namespace}/rolebindings",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "CustomResourceDefinition": "/apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "MutatingWebhookConfiguration": "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "ValidatingWebhookConfiguration": "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
}


@pytest.fixture
def helm(control_plane: Any, namespace: str) -> Iterator[helm_python.Config]:
    """Helm in a namespace of the test's own; the release is gone afterwards, the kept CRD is the next one's."""
    adopt_crd(control_plane, namespace)
    with helm_python.Config(kubeconfig_path=control_plane.kubeconfig, namespace=namespace) as config:
        yield config
        for release in config.list():
            config.uninstall(release["name"])


def adopt_crd(control_plane: Any, namespace: str) -> None:
    """Helm takes over only what says that it belongs to the release, and changes only fields that are its own.

    Other tests' CRD is still there, applied by them.
    """
    found = control_plane.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions")["items"]
    for metadata in [crd["metadata"] for crd in found if crd["metadata"]["name"] == CRD.rsplit("/", 1)[1]]:
        owner = {"meta.helm.sh/release-name": RELEASE, "meta.helm.sh/release-namespace": namespace}
        labels = {"app.kubernetes.io/managed-by": "Helm"}
        fields = [entry for entry in metadata["managedFields"] if entry["manager"] != "tests"]
        control_plane.patch(CRD, {"metadata": {"annotations": owner, "labels": labels, "managedFields": fields}})


def allowed(control_plane: Any, account: str, verb: str, resource: str, namespace: str, name: str = "") -> bool:
    """What the authorizer says of a ServiceAccount `NAMESPACE:NAME`; resource as `RESOURCE[.GROUP][/SUBRESOURCE]`."""
    resource, _, subresource = resource.partition("/")
    resource, _, group = resource.partition(".")
    attributes = {"verb": verb, "group": group, "resource": resource, "namespace": namespace, "name": name}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": f"system:serviceaccount:{account}",
            "resourceAttributes": attributes | {"subresource": subresource},
        },
    }
    answer = control_plane.create("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


def test_an_install_creates_every_object(helm: helm_python.Config, control_plane: Any, namespace: str) -> None:
    release = helm.install(CHART, RELEASE, namespace=namespace)
    assert release["status"] == "deployed"
    for o in objects(name=RELEASE):
        place = PLACES[o["kind"]].format(namespace=namespace)
        assert control_plane.get(f"{place}/{o['metadata']['name']}")["kind"] == o["kind"]


def test_an_upgrade_applies_values_and_keeps_the_ca_bundle(
    helm: helm_python.Config, control_plane: Any, namespace: str
) -> None:
    """The bundle is written by the operator or cert-manager; an upgrade that lost it would stop admission."""
    helm.install(CHART, RELEASE, namespace=namespace)
    bundle = base64.b64encode(b"-----BEGIN CERTIFICATE-----").decode()
    written = [{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": bundle}]
    control_plane.request("PATCH", MUTATING, written, content_type="application/json-patch+json")
    helm.upgrade(CHART, RELEASE, {"webhook": {"replicas": 3, "timeoutSeconds": 4}}, namespace=namespace)
    deployment = control_plane.get(f"/apis/apps/v1/namespaces/{namespace}/deployments/{RELEASE}-webhook")
    webhook = control_plane.get(MUTATING)["webhooks"][0]
    assert deployment["spec"]["replicas"] == 3
    assert webhook["timeoutSeconds"] == 4
    assert webhook["clientConfig"]["caBundle"] == bundle


def test_an_upgrade_upgrades_the_crd(
    helm: helm_python.Config, control_plane: Any, namespace: str, tmp_path: Path
) -> None:
    helm.install(CHART, RELEASE, namespace=namespace)
    newer = tmp_path / "dippm"
    shutil.copytree(CHART, newer)
    template = newer / "templates" / "crd.yaml"
    text = template.read_text()
    assert "- name: Age\n" in text
    template.write_text(text.replace("- name: Age\n", "- name: Since\n"))
    helm.upgrade(newer, RELEASE, namespace=namespace)
    columns = control_plane.get(CRD)["spec"]["versions"][0]["additionalPrinterColumns"]
    assert "Since" in [column["name"] for column in columns]


def test_an_uninstall_keeps_the_crd_and_what_users_made(
    helm: helm_python.Config, control_plane: Any, namespace: str
) -> None:
    helm.install(CHART, RELEASE, namespace=namespace)
    jobs = f"/apis/dippm.dev/v1alpha1/namespaces/{namespace}/inferencejobs"
    # The webhook is not running; it fails open, after its time-out.
    control_plane.patch(MUTATING.replace("mutating", "validating"), {"webhooks": []})
    control_plane.create(
        jobs,
        {
            "apiVersion": "dippm.dev/v1alpha1",
            "kind": "InferenceJob",
            "metadata": {"name": "kept"},
            "spec": {
                "model": {"uri": "https://models.example.com/resnet50.onnx"},
                "batchSize": 1,
                "template": {"spec": {"containers": [{"name": "server", "image": "server"}]}},
            },
        },
    )
    answer = helm.uninstall(RELEASE)
    assert "[CustomResourceDefinition] inferencejobs.dippm.dev" in answer["info"]
    assert control_plane.get(f"{jobs}/kept")["metadata"]["name"] == "kept"
    with pytest.raises(Exception, match=r"^404: "):
        control_plane.get(MUTATING)
    helm.install(CHART, RELEASE, namespace=namespace)
    assert control_plane.get(f"{jobs}/kept")["metadata"]["name"] == "kept"


def test_the_operator_may_do_what_it_does_and_nothing_more(
    helm: helm_python.Config, control_plane: Any, namespace: str
) -> None:
    helm.install(CHART, RELEASE, namespace=namespace)
    account, elsewhere = f"{namespace}:{RELEASE}-operator", "default"
    for verb, resource, place, name in (
        ("create", "leases.coordination.k8s.io", namespace, ""),
        ("update", "leases.coordination.k8s.io", namespace, f"{RELEASE}-operator"),
        ("create", "secrets", namespace, ""),
        ("update", "secrets", namespace, f"{RELEASE}-webhook-tls"),
        ("watch", "inferencejobs.dippm.dev", elsewhere, ""),
        ("update", "inferencejobs.dippm.dev/status", elsewhere, "a"),
        ("create", "jobs.batch", elsewhere, ""),
        ("create", "events", elsewhere, ""),
        ("watch", "pods", elsewhere, ""),
        ("watch", "nodes", "", ""),
        ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "", RELEASE),
    ):
        assert allowed(control_plane, account, verb, resource, place, name), (verb, resource, name)
    for verb, resource, place, name in (
        ("get", "secrets", elsewhere, "any"),
        ("list", "secrets", namespace, ""),
        ("get", "secrets", namespace, "any-other"),
        ("delete", "secrets", namespace, f"{RELEASE}-webhook-tls"),
        ("update", "inferencejobs.dippm.dev", elsewhere, "a"),
        ("create", "inferencejobs.dippm.dev", elsewhere, ""),
        ("update", "jobs.batch", elsewhere, "a"),
        ("delete", "jobs.batch", elsewhere, "a"),
        ("create", "pods", elsewhere, ""),
        ("delete", "pods", elsewhere, "a"),
        ("patch", "nodes", "", "a"),
        ("create", "leases.coordination.k8s.io", elsewhere, ""),
        ("update", "leases.coordination.k8s.io", namespace, "another"),
        ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "", "another"),
        ("create", "pods/exec", elsewhere, "a"),
        ("impersonate", "users", "", "admin"),
    ):
        assert not allowed(control_plane, account, verb, resource, place, name), (verb, resource, name)


def test_the_webhook_reads_and_writes_nothing(helm: helm_python.Config, control_plane: Any, namespace: str) -> None:
    helm.install(CHART, RELEASE, namespace=namespace)
    account, elsewhere = f"{namespace}:{RELEASE}-webhook", "default"
    for verb, resource, place, name in (
        ("watch", "inferencejobs.dippm.dev", elsewhere, ""),
        ("get", "replicasets.apps", elsewhere, "a"),
        ("get", "jobs.batch", elsewhere, "a"),
        ("list", "resourcequotas", elsewhere, ""),
        ("create", "subjectaccessreviews.authorization.k8s.io", "", ""),
        ("get", "validatingwebhookconfigurations.admissionregistration.k8s.io", "", RELEASE),
    ):
        assert allowed(control_plane, account, verb, resource, place, name), (verb, resource, name)
    for verb, resource, place, name in (
        ("get", "secrets", namespace, f"{RELEASE}-webhook-tls"),
        ("patch", "inferencejobs.dippm.dev/status", elsewhere, "a"),
        ("patch", "pods", elsewhere, "a"),
        ("patch", "mutatingwebhookconfigurations.admissionregistration.k8s.io", "", RELEASE),
        ("delete", "pods", elsewhere, "a"),
    ):
        assert not allowed(control_plane, account, verb, resource, place, name), (verb, resource, name)


def test_pods_pass_the_restricted_pod_security_standard(
    helm: helm_python.Config, control_plane: Any, namespace: str
) -> None:
    helm.install(CHART, RELEASE, namespace=namespace)
    enforced = {"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "restricted"}}}
    control_plane.patch(f"/api/v1/namespaces/{namespace}", enforced)
    for component in ("operator", "webhook"):
        place = f"/apis/apps/v1/namespaces/{namespace}/deployments/{RELEASE}-{component}"
        template = control_plane.get(place)["spec"]["template"]
        pod = {"apiVersion": "v1", "kind": "Pod", **template, "metadata": {**template["metadata"], "name": component}}
        assert control_plane.create(f"/api/v1/namespaces/{namespace}/pods?dryRun=All", pod)["kind"] == "Pod"
