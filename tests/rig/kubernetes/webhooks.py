"""Turns a controller's webhook manifests from a Service to a URL on this host: webhooks.py MANIFESTS PORT CA PREFIX."""

import base64
import pathlib
import re
import sys

SERVICE = r"    service:\n      name: webhook-service\n      namespace: system\n      path: (\S+)"
NAME = r"  name: (\w+-webhook-configuration)"


def main():
    manifests, port, authority, prefix = sys.argv[1:]
    bundle = base64.b64encode(pathlib.Path(authority).read_bytes()).decode()
    text = pathlib.Path(manifests).read_text()
    text, changed = re.subn(SERVICE, rf"    url: https://127.0.0.1:{port}\1\n    caBundle: {bundle}", text)
    if changed == 0:
        sys.exit(f"{manifests} names no webhook-service: its form has changed")
    # Two controllers call their configurations alike.
    print(re.sub(NAME, rf"  name: {prefix}-\1", text))


main()
