"""`s3://bucket/key`: plain HTTP, signed by botocore where there are keys (AWS Signature Version 4).

https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch.credentials import Credentials, S3Options, s3_options
from dippm_operator.fetch.http import Signer, shown

DEFAULT_REGION = "us-east-1"


def s3_request(uri: str, credentials: Credentials | None) -> tuple[str, Signer | None]:
    """The URL of an object, and what signs requests for it; anonymous without a Secret.

    Raises ArtifactUnreachable where the URI names no object, or the Secret does not do.
    """
    parts = urlsplit(uri)
    bucket, key = parts.netloc, unquote(parts.path).lstrip("/")
    if not bucket or not key or key.endswith("/"):
        raise ArtifactUnreachable(f"{shown(uri)} names no object; write s3://BUCKET/PATH/model.onnx.")
    options = s3_options(credentials)
    region = options.region or DEFAULT_REGION
    if options.endpoint:  # stores of one's own rarely have a name for each bucket
        url = f"{options.endpoint.rstrip('/')}/{quote(bucket)}/{quote(key)}"
    elif "." in bucket:  # the certificate's wildcard covers one label
        url = f"https://s3.{region}.amazonaws.com/{quote(bucket)}/{quote(key)}"
    else:
        url = f"https://{quote(bucket)}.s3.{region}.amazonaws.com/{quote(key)}"
    return url, _signer(options, region) if options.key else None


def _signer(options: S3Options, region: str) -> Signer:
    try:
        from botocore.auth import S3SigV4Auth  # takes a quarter of a second to import
        from botocore.awsrequest import AWSRequest
        from botocore.credentials import Credentials as Keys
    except ImportError:
        raise ArtifactUnreachable("s3:// with a Secret needs botocore; install dippm[sources].") from None
    auth = S3SigV4Auth(Keys(options.key, options.secret, options.token or None), "s3", region)

    def sign(url: str, headers: Mapping[str, str]) -> Mapping[str, str]:
        request = AWSRequest(method="GET", url=url, headers=dict(headers))
        auth.add_auth(request)
        return dict(request.headers.items())

    return sign
