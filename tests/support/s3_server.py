"""An S3 server, moto's, as a process of its own on loopback."""

import contextlib
import os
import socket
import subprocess
import sys
import time

import pytest


@contextlib.contextmanager
def s3_server(port):
    """Runs the server, gives boto3's client of it, and sets the environment so that s3:// means it. Skips where a
    library is not installed."""
    for library in ("moto.server", "boto3", "s3fs"):
        pytest.importorskip(library, reason=f"{library} is not installed: s3:// is not tested")
    import boto3

    command = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    old = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        end = time.monotonic() + 60
        while True:
            with socket.socket() as waiting:
                if waiting.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < end and server.poll() is None
            time.sleep(0.05)
        yield boto3.client("s3")
    finally:
        server.kill()
        server.wait()
        for name, value in old.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
