"""
A registry of one image, as an engine asks for it.
"""

import contextlib
import gzip
import hashlib
import http.server
import io
import json
import tarfile
import threading

KIND = "application/vnd.docker.distribution.manifest.v2+json"


@contextlib.contextmanager
def registry(size):
    """Serve an image that takes ``size`` bytes of a disk; give its reference."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        file = tarfile.TarInfo("file")
        file.size = size
        tar.addfile(file, io.BytesIO(bytes(size)))
    root = {"type": "layers", "diff_ids": [_digest(layer.getvalue())]}
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": root}
    blobs = [json.dumps(config).encode(), gzip.compress(layer.getvalue())]
    kinds = ("container.image.v1+json", "image.rootfs.diff.tar.gzip")
    told = [
        {
            "mediaType": f"application/vnd.docker.{kind}",
            "size": len(blob),
            "digest": _digest(blob),
        }
        for kind, blob in zip(kinds, blobs, strict=True)
    ]
    manifest = {"schemaVersion": 2, "mediaType": KIND, "config": told[0], "layers": told[1:]}
    blobs.append(json.dumps(manifest).encode())
    served = {_digest(blob): blob for blob in blobs}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            body = served.get(self.path.rpartition("/")[2], b"")
            self.send_response(200 if body or self.path == "/v2/" else 404)
            self.send_header("Content-Type", KIND if "/manifests/" in self.path else "*/*")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, *_):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}/llm-test@{_digest(blobs[2])}"
        server.shutdown()


def _digest(content):
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
