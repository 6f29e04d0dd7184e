"""Packs a folder as an OCI image archive of one layer: mkimage.py ROOTFS NAME:TAG OUT [ENTRYPOINT...].

The same folder gives the same bytes: owners and times are levelled, so that an image loaded before is not loaded again.
"""

import gzip
import hashlib
import io
import json
import sys
import tarfile

OCI = "application/vnd.oci.image"
PATH = "PATH=/usr/local/bin:/usr/bin:/bin"


def main():
    root, name, out, *entrypoint = sys.argv[1:]
    blobs = {}
    layer = pack(root)
    layer_blob = put(blobs, gzip.compress(layer, 1, mtime=0), f"{OCI}.layer.v1.tar+gzip")
    image = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": entrypoint or None, "Env": [PATH]},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer)]},
    }
    config_blob = put(blobs, json.dumps(image).encode(), f"{OCI}.config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{OCI}.manifest.v1+json",
        "config": config_blob,
        "layers": [layer_blob],
    }
    manifest_blob = put(blobs, json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")
    manifest_blob["annotations"] = {
        "io.containerd.image.name": name,
        "org.opencontainers.image.ref.name": name.rsplit(":", 1)[1],
    }
    with tarfile.open(out, "w") as archive:
        add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        add(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [manifest_blob]}).encode())
        for blob_digest, data in blobs.items():
            add(archive, "blobs/" + blob_digest.replace(":", "/"), data)


def pack(root):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(root, arcname=".", filter=levelled)
    return packed.getvalue()


def levelled(member):
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def put(blobs, data, media_type):
    blobs[digest(data)] = data
    return {"mediaType": media_type, "digest": digest(data), "size": len(data)}


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def add(archive, path, data):
    member = tarfile.TarInfo(path)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


main()
