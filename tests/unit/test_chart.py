"""What the chart renders."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import helm_python
import pytest
import yaml
from tests.chart import CHART, NAMESPACE, REPOSITORY, container, find, objects, of_kind, templates

from dippm.frontend.converter import CONVERTERS
from dippm.frontend.limits import Limits

CERT_MANAGER = {"certificates": {"provider": "cert-manager"}}
EVERYTHING: dict[str, Any] = {
    "operator": {
        "replicas": 2,
        "podAnnotations": {"team": "ml"},
        "nodeSelector": {"pool": "system"},
        "tolerations": [{"key": "system", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "watchNamespaces": ["vision", "language"],
        "fileRoots": ["/models"],
        "extraVolumes": [{"name": "models", "persistentVolumeClaim": {"claimName": "models"}}],
        "extraVolumeMounts": [{"name": "models", "mountPath": "/models", "readOnly": True}],
    },
    "webhook": {"replicas": 5, "excludedNamespaces": ["istio-system"], "podAnnotations": {"team": "ml"}},
    "metrics": {"podMonitor": {"enabled": True, "labels": {"release": "prometheus"}}},
    "priorityClassName": "system-cluster-critical",
    "imagePullSecrets": [{"name": "registry"}],
    "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/models"}},
}
RELEASES = {"defaults": {}, "cert-manager": CERT_MANAGER, "everything": EVERYTHING}


def any_release(test: Any) -> Any:
    return pytest.mark.parametrize("values", RELEASES.values(), ids=RELEASES)(test)


@any_release
def test_helm_lint_has_no_complaint(values: dict[str, Any]) -> None:
    report = helm_python.lint(CHART, values, strict=True, namespace=NAMESPACE)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


@any_release
def test_every_object_says_what_it_is_and_to_which_release_it_belongs(values: dict[str, Any]) -> None:
    for o in objects(values):
        assert o["apiVersion"]
        assert o["kind"]
        if o["kind"] != "CustomResourceDefinition":
            assert o["metadata"]["labels"]["app.kubernetes.io/instance"] == "dippm", o["kind"]
            assert o["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "Helm", o["kind"]


@pytest.mark.parametrize("release", ["dippm", "a", "a-release-with-the-longest-name-that-helm-allows-53-chr"])
def test_names_fit_into_63_characters_whatever_the_release_is_called(release: str) -> None:
    for o in objects(CERT_MANAGER, name=release):
        name = o["metadata"]["name"]
        assert len(name) <= 63, name
        if o["kind"] != "CustomResourceDefinition":
            assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", name), name


@any_release
def test_two_releases_share_nothing_but_the_crd(values: dict[str, Any]) -> None:
    def names(release: str) -> set[tuple[str, str]]:
        found = {(o["kind"], o["metadata"]["name"]) for o in objects(values, name=release)}
        return found - {("CustomResourceDefinition", "inferencejobs.dippm.dev")}

    assert names("one") & names("two") == set()


@any_release
def test_nothing_is_rendered_twice(values: dict[str, Any]) -> None:
    names = [(o["kind"], o["metadata"].get("namespace"), o["metadata"]["name"]) for o in objects(values)]
    assert len(names) == len(set(names))


@any_release
def test_rendering_twice_gives_the_same_text(values: dict[str, Any]) -> None:
    """Nothing random: a sync of Argo CD finds no difference."""
    assert templates(values) == templates(values)


@any_release
def test_no_certificate_and_no_key_is_rendered(values: dict[str, Any]) -> None:
    text = "\n".join(templates(values).values())
    assert "BEGIN" not in text
    assert of_kind(objects(values), "Secret") == []
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        for webhook in find(objects(values), kind, "dippm")["webhooks"]:
            assert "caBundle" not in webhook["clientConfig"]


@any_release
@pytest.mark.parametrize("component", ["operator", "webhook"])
def test_containers_are_as_locked_down_as_the_restricted_pod_security_standard_asks(
    values: dict[str, Any], component: str
) -> None:
    release = objects(values)
    pod = find(release, "Deployment", f"dippm-{component}")["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 65532
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    security = container(release, component)["securityContext"]
    assert security["allowPrivilegeEscalation"] is False
    assert security["readOnlyRootFilesystem"] is True
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_the_user_of_the_pods_is_the_user_of_the_image() -> None:
    (user,) = re.findall(r"^USER (\d+):\d+$", (REPOSITORY / "Dockerfile").read_text(), re.MULTILINE)
    pod = find(objects(), "Deployment", "dippm-operator")["spec"]["template"]["spec"]
    assert str(pod["securityContext"]["runAsUser"]) == user


@pytest.mark.parametrize("component", ["operator", "webhook"])
def test_each_port_that_a_probe_or_the_service_names_exists(component: str) -> None:
    release = objects()
    found = container(release, component)
    ports = {port["name"] for port in found["ports"]}
    probes = [found[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe") if probe in found]
    assert probes
    assert set(probes) <= ports
    (service_port,) = find(release, "Service", "dippm-webhook")["spec"]["ports"]
    assert service_port["targetPort"] in {p["name"] for p in container(release, "webhook")["ports"]}


def test_the_service_selects_the_webhook_and_not_the_operator() -> None:
    release = objects()
    selector = find(release, "Service", "dippm-webhook")["spec"]["selector"].items()

    def labels(name: str) -> Any:
        return find(release, "Deployment", name)["spec"]["template"]["metadata"]["labels"].items()

    assert selector <= labels("dippm-webhook")
    assert not selector <= labels("dippm-operator")


def test_webhook_replicas_avoid_each_others_node_and_zone() -> None:
    release = objects({"webhook": {"replicas": 3}})
    pod = find(release, "Deployment", "dippm-webhook")["spec"]["template"]
    (spread,) = pod["spec"]["topologySpreadConstraints"]
    (apart,) = pod["spec"]["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    for term, key in ((spread, "topology.kubernetes.io/zone"), (apart["podAffinityTerm"], "kubernetes.io/hostname")):
        assert term["topologyKey"] == key
        assert term["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_an_affinity_of_the_users_own_replaces_the_charts() -> None:
    own = {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": []}}
    release = objects({"webhook": {"affinity": own}})
    assert find(release, "Deployment", "dippm-webhook")["spec"]["template"]["spec"]["affinity"] == own


@pytest.mark.parametrize(("replicas", "budgets"), [(1, 0), (2, 1), (12, 1)])
def test_a_disruption_budget_exists_only_where_a_replica_can_be_spared(replicas: int, budgets: int) -> None:
    """With one replica a budget would block every node drain."""
    assert len(of_kind(objects({"webhook": {"replicas": replicas}}), "PodDisruptionBudget")) == budgets


def test_cert_manager_issues_for_the_name_that_the_api_server_calls() -> None:
    release = objects(CERT_MANAGER)
    certificate = find(release, "Certificate", "dippm-webhook-tls")["spec"]
    assert f"dippm-webhook.{NAMESPACE}.svc" in certificate["dnsNames"]
    assert certificate["secretName"] == "dippm-webhook-tls"
    assert find(release, "Issuer", certificate["issuerRef"]["name"])
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        annotations = find(release, kind, "dippm")["metadata"]["annotations"]
        assert annotations == {"cert-manager.io/inject-ca-from": f"{NAMESPACE}/dippm-webhook-tls"}


def test_with_cert_manager_nobody_may_touch_a_secret_or_a_configuration() -> None:
    for role in objects(CERT_MANAGER):
        for rule in role.get("rules", ()):
            assert "secrets" not in rule["resources"]
            if "mutatingwebhookconfigurations" in rule["resources"]:
                assert rule["verbs"] == ["get"]


@any_release
def test_no_rule_has_a_wildcard(values: dict[str, Any]) -> None:
    for role in objects(values):
        for rule in role.get("rules", ()):
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], rule


def test_an_issuer_of_the_users_own_is_used_instead_of_a_self_signed_one() -> None:
    own = {"name": "company", "kind": "ClusterIssuer"}
    release = objects({"certificates": {"provider": "cert-manager", "issuerRef": own}})
    assert of_kind(release, "Issuer") == []
    assert of_kind(release, "Certificate")[0]["spec"]["issuerRef"] == own


def test_without_cert_manager_nothing_of_it_is_rendered() -> None:
    assert [o for o in objects() if "cert-manager" in o["apiVersion"]] == []
    assert "cert-manager.io/" not in "\n".join(templates().values())


def test_the_crd_survives_an_uninstall_and_follows_an_upgrade() -> None:
    """A template (an upgrade applies it), kept at uninstall; nothing in crds/, which helm never upgrades."""
    crd = find(objects(upgrade=True), "CustomResourceDefinition", "inferencejobs.dippm.dev")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    assert not (CHART / "crds").exists()


def test_the_charts_crd_is_the_one_in_crds() -> None:
    source = yaml.safe_load((REPOSITORY / "crds" / "inferencejobs.dippm.dev.yaml").read_text())
    rendered = find(objects(), "CustomResourceDefinition", "inferencejobs.dippm.dev")
    assert rendered["spec"] == source["spec"]


def test_what_is_generated_is_current() -> None:
    command = [sys.executable, "charts/generate.py", "--check"]
    report = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert report.returncode == 0, report.stdout + report.stderr


def test_a_pod_monitor_is_made_only_when_asked_for() -> None:
    assert of_kind(objects(), "PodMonitor") == []
    (monitor,) = of_kind(objects(EVERYTHING), "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    port = monitor["spec"]["podMetricsEndpoints"][0]["port"]
    for component in ("operator", "webhook"):
        assert port in {p["name"] for p in container(objects(EVERYTHING), component)["ports"]}


def test_a_digest_outranks_the_tag() -> None:
    digest = "sha256:" + "0" * 64
    image = container(objects({"image": {"digest": digest, "tag": "latest"}}), "webhook")["image"]
    assert image == f"ghcr.io/dippm/dippm@{digest}"


def test_priority_and_pull_secrets_reach_both_pods() -> None:
    for deployment in of_kind(objects(EVERYTHING), "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        assert pod["priorityClassName"] == "system-cluster-critical"
        assert pod["imagePullSecrets"] == [{"name": "registry"}]


def test_the_charts_version_is_the_packages() -> None:
    version = re.findall(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)[0]
    with helm_python.Chart.load(CHART) as chart:
        assert chart.metadata["appVersion"] == version


def test_the_notes_show_a_first_job_that_the_crd_accepts() -> None:
    from dippm_operator.resource import InferenceJob

    text = templates()["NOTES.txt"]
    (manifest,) = re.findall(r"<<'EOF'\n(.*?)\n  EOF", text, re.DOTALL)
    job = InferenceJob.model_validate(yaml.safe_load(manifest))
    assert job.metadata.name == "first"


def test_the_notes_warn_of_a_single_replica() -> None:
    assert "WARNING" not in templates()["NOTES.txt"]
    assert "WARNING: one webhook replica" in templates({"webhook": {"replicas": 1}})["NOTES.txt"]


@any_release
@pytest.mark.parametrize("component", ["operator", "webhook"])
def test_each_process_understands_its_arguments(values: dict[str, Any], component: str) -> None:
    if component == "operator":
        from dippm_operator.controller.settings import parse_settings
    else:
        from dippm_operator.webhook.settings import parse_settings
    settings = parse_settings(container(objects(values), component)["args"])
    assert settings.webhook_configuration == "dippm"
    assert settings.log_level == "info"


def test_the_operator_is_told_what_the_values_say() -> None:
    from dippm_operator.controller.settings import parse_settings

    settings = parse_settings(container(objects(EVERYTHING), "operator")["args"])
    assert settings.namespace == NAMESPACE
    assert settings.watch_namespaces == ("vision", "language")
    assert [str(root) for root in settings.fetch.file_roots] == ["/models"]
    assert settings.certificate_secret == "dippm-webhook-tls"
    assert settings.webhook_service == find(objects(), "Service", "dippm-webhook")["metadata"]["name"]
    assert settings.fetch.blocked_networks, "the operator must not fetch from its own node"


def test_the_processes_listen_where_the_ports_say() -> None:
    from dippm_operator.controller.settings import parse_settings as parse_operator
    from dippm_operator.webhook.settings import parse_settings as parse_webhook

    release = objects()
    operator, webhook = container(release, "operator"), container(release, "webhook")
    told, answered = parse_operator(operator["args"]), parse_webhook(webhook["args"])
    assert {p["name"]: p["containerPort"] for p in operator["ports"]} == {
        "health": told.health_port,
        "metrics": told.metrics_port,
    }
    assert {p["name"]: p["containerPort"] for p in webhook["ports"]} == {
        "https": answered.port,
        "metrics": answered.health_port,
    }


def test_whatever_the_failure_policy_a_job_that_names_a_secret_is_never_let_in_unchecked() -> None:
    webhooks = find(objects(), "ValidatingWebhookConfiguration", "dippm")["webhooks"]
    policies = {w["name"]: w["failurePolicy"] for w in webhooks}
    assert policies == {"inferencejobs.dippm.dev": "Ignore", "secrets.inferencejobs.dippm.dev": "Fail"}
    conditions = [c["expression"] for c in webhooks[1]["matchConditions"]]
    assert conditions[0] == "has(object.spec.model.secretRef)", "a job without a Secret must not wait for the webhook"


def test_a_review_is_answered_before_the_api_server_gives_up() -> None:
    from dippm_operator.webhook.settings import parse_settings

    release = objects()
    budget = parse_settings(container(release, "webhook")["args"]).budget_seconds
    for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
        assert all(budget < webhook["timeoutSeconds"] for webhook in find(release, kind, "dippm")["webhooks"])


def test_a_parser_that_takes_all_it_may_does_not_end_the_operator_with_it() -> None:
    """A container that reaches its limit ends as a whole; beside the child run operator and predictor."""
    limit = container(objects(), "operator")["resources"]["limits"]["memory"]
    beside_gib = 1.5
    assert int(limit.removesuffix("Gi")) >= Limits().address_space_bytes / 2**30 + beside_gib


def test_conversions_fit_into_the_operators_temporary_folder_and_its_patience() -> None:
    """So that a user is told which limit it was, and the pod is not evicted."""
    from dippm_operator.controller.settings import parse_settings

    release = objects()
    pod = find(release, "Deployment", "dippm-operator")["spec"]["template"]["spec"]
    mounted = {one["mountPath"]: one["name"] for one in container(release, "operator")["volumeMounts"]}
    size = next(v for v in pod["volumes"] if v["name"] == mounted["/tmp"])["emptyDir"]["sizeLimit"]
    patience = parse_settings(container(release, "operator")["args"]).prediction_seconds
    for converter in CONVERTERS.values():
        limits = converter.limits
        assert limits.file_size_bytes + limits.result_bytes <= 0.75 * (int(size.removesuffix("Gi")) << 30)
        assert limits.result_bytes < limits.file_size_bytes
        assert limits.wall_seconds + Limits().wall_seconds + 30 < patience


def test_the_webhook_drains_before_kubelet_kills_it() -> None:
    from dippm_operator.webhook.settings import parse_settings

    release = objects()
    drain = parse_settings(container(release, "webhook")["args"]).drain_seconds
    pod = find(release, "Deployment", "dippm-webhook")["spec"]["template"]["spec"]
    assert drain + 5 < pod["terminationGracePeriodSeconds"]


def test_claims_are_read_and_private_addresses_blocked_where_the_values_say_so() -> None:
    def of(operator: dict[str, Any]) -> tuple[list[str], set[str]]:
        release = objects({"operator": operator})
        rules = find(release, "ClusterRole", "dippm-operator")["rules"]
        asked = [a for a in container(release, "operator")["args"] if "claim" in a or "private" in a]
        return asked, {resource for rule in rules for resource in rule["resources"]}

    arguments, resources = of({})
    assert arguments == []
    assert not resources & {"persistentvolumeclaims", "pods/log"}
    arguments, resources = of({"claims": {"enabled": True}, "blockPrivateAddresses": True})
    image = container(objects(), "operator")["image"]
    assert arguments == [f"--claim-image={image}", "--claim-seconds=120", "--block-private-addresses"]
    assert resources >= {"persistentvolumeclaims", "pods/log"}
