"""Makes a bucket, and puts the files of a folder into it: make_bucket.py SECRET_FOLDER NAME [FOLDER PREFIX].

Requests are signed with version 2, which Ceph's gateway takes.
"""

import base64
import email.utils
import hashlib
import hmac
import pathlib
import sys
import urllib.request

secret, name = pathlib.Path(sys.argv[1]), sys.argv[2]
user, key, endpoint = (
    (secret / entry).read_text() for entry in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "endpoint")
)


def put(resource: str, body: bytes | None = None) -> None:
    date = email.utils.formatdate(usegmt=True)
    kind = "" if body is None else "application/octet-stream"
    text = f"PUT\n\n{kind}\n{date}\n{resource}"
    signature = base64.b64encode(hmac.new(key.encode(), text.encode(), hashlib.sha1).digest()).decode()
    request = urllib.request.Request(endpoint + resource, data=body, method="PUT")
    request.add_header("Date", date)
    if kind:
        request.add_header("Content-Type", kind)
    request.add_header("Authorization", f"AWS {user}:{signature}")
    urllib.request.urlopen(request, timeout=30).read()


put(f"/{name}/")
if len(sys.argv) > 3:
    folder, prefix = pathlib.Path(sys.argv[3]), sys.argv[4]
    for file in sorted(folder.iterdir()):
        put(f"/{name}/{prefix}/{file.name}", file.read_bytes())
