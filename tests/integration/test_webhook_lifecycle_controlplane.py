"""The webhook's certificate rotated under load, and what happens while it is down."""

from __future__ import annotations

import base64
import ssl
import time
from datetime import timedelta

import pytest
from tests.chart import NAMESPACE
from tests.integration.webhook_process import inference_job, jobs, pod, recommend, sized_soon

from dippm_operator.resource.names import SIZING_ANNOTATION

pytestmark = pytest.mark.controlplane


def test_the_certificate_is_rotated_while_pods_are_admitted(control_plane, namespace, webhook):
    """Pods are admitted all through a rotation: at no time does the API server refuse the webhook."""
    control_plane.create(jobs(namespace), inference_job())
    recommend(control_plane, namespace, "resnet50")
    sized_soon(control_plane, namespace, "resnet50")
    secret = f"/api/v1/namespaces/{NAMESPACE}/secrets/{webhook.settings.secret}"
    old = control_plane.get(secret)["data"]
    quick = {"publish_before": timedelta(seconds=2), "retire_after": timedelta(seconds=8)}
    due = quick | {"renew_before": timedelta(days=91)}
    steps: list[str] = []
    for changed, seconds in ((due, 2.1), (quick, 8.1), (quick, 2.0)):
        steps += [step.value for step in webhook.ensure(**changed).steps]
        webhook.mount()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            made = control_plane.create(f"/api/v1/namespaces/{namespace}/pods", pod("resnet50"))
            assert SIZING_ANNOTATION in made["metadata"].get("annotations", {}), steps
            time.sleep(0.2)
    assert steps == ["Stage", "Publish", "MarkPublished", "Switch", "Retire", "Publish"]
    new = control_plane.get(secret)["data"]
    assert (new["tls.crt"] != old["tls.crt"], new["ca.crt"] != old["ca.crt"]) == (True, True)
    served = ssl.get_server_certificate(("127.0.0.1", webhook.port))
    assert served.strip() == base64.b64decode(new["tls.crt"]).decode().strip()
    assert webhook.probe("readyz") == (200, "ok\n")


def test_pods_come_up_unsized_while_the_webhook_is_down(control_plane, namespace, webhook):
    """Last: it stops the process, and starts it again."""
    control_plane.create(jobs(namespace), inference_job())
    recommend(control_plane, namespace, "resnet50")
    sized_soon(control_plane, namespace, "resnet50")
    assert webhook.stop() == 0
    made = control_plane.create(f"/api/v1/namespaces/{namespace}/pods", pod("resnet50"))
    assert SIZING_ANNOTATION not in made["metadata"].get("annotations", {})
    webhook.start()
    sized_soon(control_plane, namespace, "resnet50")


def test_a_job_with_a_secret_waits_for_the_webhook_and_one_without_does_not(control_plane, namespace, webhook):
    model = {"uri": "https://models.example/m.onnx", "secretRef": {"name": "models-reader"}}
    made = control_plane.create(jobs(namespace), inference_job("before", model=model))
    webhook.stop()
    control_plane.create(jobs(namespace), inference_job("open"))
    with pytest.raises(Exception, match=r"secrets\.inferencejobs\.dippm\.dev") as refused:
        control_plane.create(jobs(namespace), inference_job("secret", model=model))
    assert refused.value.code == 500
    # What names the same Secret for the same model as before is no new use of it.
    place = f"{jobs(namespace)}/{made['metadata']['name']}"
    assert control_plane.patch(place, {"metadata": {"labels": {"team": "vision"}}})["metadata"]["labels"]
