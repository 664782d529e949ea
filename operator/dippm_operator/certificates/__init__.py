"""The webhook's certificate: issued and rotated by the holder of the operator's Lease, or left to cert-manager.

`ensure_certificates(api, settings)` is called on a timer; everything that it decides is in `rotation`, pure.
"""

from dippm_operator.certificates.ensure import CertificateReport, ensure_certificates
from dippm_operator.certificates.settings import CertificateSettings, Provider

__all__ = ["CertificateReport", "CertificateSettings", "Provider", "ensure_certificates"]
