"""A real S3 server (SeaweedFS) on the loopback interface."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import obstore
from obstore.store import S3Store
from ports import free_ports

PROGRAM = Path(sys.executable).parent / "weed"
WITHIN_S = 60
BUCKET = "files"
"""What `url` of the tests is in."""
KEY, SECRET = "somebody", "s3cret-of-somebody"


class Seaweed:
    """One process with everything in it, ended by its own handle."""

    def __init__(self, folder: Path) -> None:
        ports = free_ports(8)
        self._port, self.filer_port = ports[0], ports[1]
        self._folder = folder
        (folder / "data").mkdir(parents=True)
        identity = {
            "name": "somebody",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        command = [
            str(PROGRAM), "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
            f"-s3.config={folder / 's3.json'}", "-filer", "-s3", "-s3.iam=false",
            "-s3.port.iceberg=0", "-s3.port.lance=0",  # both have a fixed one otherwise
            f"-s3.port={ports[0]}", f"-filer.port={ports[1]}", f"-master.port={ports[2]}",
            f"-volume.port={ports[3]}", f"-s3.port.grpc={ports[4]}", f"-filer.port.grpc={ports[5]}",
            f"-master.port.grpc={ports[6]}", f"-volume.port.grpc={ports[7]}", "-volume.max=20",
            "-master.volumeSizeLimitMB=128", "-master.telemetry=false",
        ]  # fmt: skip
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """What an operator would export."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
        }

    def make_bucket(self, name: str) -> None:
        """Wait until the server takes an object into it: the first one makes the bucket."""
        until = time.monotonic() + WITHIN_S
        while not self._takes(name):
            assert time.monotonic() < until, (self._folder / "log").read_text()[-5000:]
            assert self._process.poll() is None, (self._folder / "log").read_text()[-5000:]
            time.sleep(0.1)

    def client(self, bucket: str) -> S3Store:
        """A client of its own, without a prefix."""
        return S3Store(
            bucket,
            endpoint=self.endpoint,
            access_key_id=KEY,
            secret_access_key=SECRET,
            region="us-east-1",
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def _takes(self, bucket: str) -> bool:
        try:
            self.client(bucket).put("probe", b"", use_multipart=False)
            self.client(bucket).delete("probe")
        except (obstore.exceptions.BaseError, OSError):
            return False
        return True

    def uploads(self, bucket: str) -> list[str]:
        """Multipart uploads that were neither completed nor aborted."""
        answer = httpx2.get(
            f"http://127.0.0.1:{self.filer_port}/buckets/{bucket}/.uploads/",
            headers={"Accept": "application/json"},
            trust_env=False,
            timeout=WITHIN_S,
        )
        if answer.status_code == 404:
            return []
        return [entry["FullPath"] for entry in answer.json()["Entries"] or ()]

    def comes_to(self, bucket: str, count: int) -> bool:
        """Wait until there are so many of them: the server sees to them behind its answers."""
        until = time.monotonic() + WITHIN_S / 3
        while len(self.uploads(bucket)) != count:
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
