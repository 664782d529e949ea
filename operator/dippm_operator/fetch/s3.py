"""`s3://bucket/key`: plain HTTP, signed by botocore where there are keys (AWS Signature Version 4).

https://docs.aws.amazon.com/AmazonS3/latest/API/RESTAuthentication.html,
https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, unquote, urlencode, urlsplit

import aiohttp

from dippm.errors import ArtifactUnreachable
from dippm_operator.fetch.credentials import Credentials, S3Options, s3_options
from dippm_operator.fetch.folder import LONGEST_LISTING, Listed
from dippm_operator.fetch.http import HttpSource, Signer, ask, refused, shown
from dippm_operator.fetch.limits import FetchLimits
from dippm_operator.fetch.listing import check_count, text_of, whole_number, xml_of

DEFAULT_REGION = "us-east-1"
PAGE = 1000
"""Objects asked for at once, the most that S3 gives."""


@dataclass(frozen=True, slots=True)
class Bucket:
    """Where a bucket is, what of it a URI names, and what signs requests for it (anonymous without a Secret)."""

    url: str
    """Without a slash at its end."""
    key: str
    sign: Signer | None


def s3_bucket(uri: str, credentials: Credentials | None) -> Bucket:
    """Take a URI apart. Raises ArtifactUnreachable where it names nothing in a bucket, or the Secret does not do."""
    parts = urlsplit(uri)
    bucket, key = parts.netloc, unquote(parts.path).lstrip("/")
    if not bucket or not key:
        raise ArtifactUnreachable(
            f"{shown(uri)} names no object; write s3://BUCKET/PATH/model.onnx or s3://BUCKET/FOLDER/."
        )
    options = s3_options(credentials)
    region = options.region or DEFAULT_REGION
    if options.endpoint:  # stores of one's own rarely have a name for each bucket
        url = f"{options.endpoint.rstrip('/')}/{quote(bucket)}"
    elif "." in bucket:  # the certificate's wildcard covers one label
        url = f"https://s3.{region}.amazonaws.com/{quote(bucket)}"
    else:
        url = f"https://{quote(bucket)}.s3.{region}.amazonaws.com"
    return Bucket(url, key, _signer(options, region) if options.key else None)


class S3Folder:
    """What a bucket has below a prefix."""

    def __init__(self, session: aiohttp.ClientSession, limits: FetchLimits, bucket: Bucket, name: str) -> None:
        self.name = name
        self.path = bucket.key
        self._session = session
        self._limits = limits
        self._bucket = bucket

    async def list(self) -> tuple[Listed, ...]:
        prefix, token, listed = self.path.rstrip("/") + "/", "", list[Listed]()
        while True:
            query = {"list-type": "2", "prefix": prefix, "max-keys": str(PAGE)} | (
                {"continuation-token": token} if token else {}
            )
            url = f"{self._bucket.url}/?{urlencode(query, quote_via=quote, safe='')}"
            headers = self._bucket.sign(url, {}) if self._bucket.sign is not None else {}
            answer = await ask(self._session, self.name, url, headers, self._limits, most=LONGEST_LISTING, exact=True)
            if answer.status != 200:
                raise refused(self.name, answer.status, answer.reason)
            root = xml_of(self.name, answer.body)
            for entry in root.iter("Contents"):
                size = whole_number(text_of(entry, "Size"))
                listed.append(Listed(text_of(entry, "Key").removeprefix(prefix), size, text_of(entry, "ETag")))
            check_count(self.name, listed)
            token = text_of(root, "NextContinuationToken")
            if not token or text_of(root, "IsTruncated") != "true":
                return tuple(listed)

    def source(self, path: str) -> HttpSource:
        key = f"{self.path.rstrip('/')}/{path}" if path else self.path
        url, name = f"{self._bucket.url}/{quote(key)}", f"{self.name.rstrip('/')}/{path}" if path else self.name
        return HttpSource(self._session, url, self._limits, name=name, sign=self._bucket.sign, exact=True)


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
