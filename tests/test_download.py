"""Downloads from a server on this machine: complete, checked, and not made twice."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import io
import tarfile
import threading

import numpy as np
import pytest

from kernelgrowth.cli import main
from kernelgrowth.datasets import download, downloads, mnist


def idx(array):
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return gzip.compress(bytes([0, 0, 8, array.ndim]) + shape + array.astype(np.uint8).tobytes())


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve small files under the names of the real ones, and count the requests."""
    rng = np.random.default_rng(0)
    files = {
        "train-images-idx3-ubyte.gz": idx(rng.integers(0, 256, (20, 28, 28))),
        "train-labels-idx1-ubyte.gz": idx(np.arange(20) % 2),
        "t10k-images-idx3-ubyte.gz": idx(rng.integers(0, 256, (10, 28, 28))),
        "t10k-labels-idx1-ubyte.gz": idx(np.arange(10) % 2),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        member = tarfile.TarInfo("cifar-10-batches-py/readme.html")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"hello"))
    files["cifar-10-python.tar.gz"] = packed.getvalue()
    requests = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/data/")
            requests.append(name)
            if name not in files:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(files[name])))
            self.end_headers()
            self.wfile.write(files[name])

        def log_message(self, *arguments):
            pass

    def known(archive):
        sums = {name: hashlib.md5(files[name]).hexdigest() for name in archive.files}
        return dataclasses.replace(archive, files=sums)

    monkeypatch.setattr(downloads, "DOWNLOADS", {name: known(archive) for name, archive in downloads.DOWNLOADS.items()})
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}/data/", files, requests
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def test_files_are_read_after_a_download_and_not_fetched_twice(server, tmp_path):
    url, _, requests = server
    folder = download("mnist", tmp_path / "data", url=url)
    data = mnist(folder, classes=(0, 1), n_train=10, n_test=4)
    assert data.x.shape == (10, 784)
    assert len(requests) == 4
    download("mnist", tmp_path / "data", url=url)
    assert len(requests) == 4


def test_archives_are_unpacked(server, tmp_path):
    url, _, _ = server
    download("cifar10", tmp_path, url=url)
    assert (tmp_path / "cifar-10-batches-py" / "readme.html").read_bytes() == b"hello"


def test_a_wrong_file_is_refused_and_not_kept(server, tmp_path, capsys):
    url, files, _ = server
    files["train-labels-idx1-ubyte.gz"] += b"tampered"
    with pytest.raises(ValueError, match="hash"):
        download("mnist", tmp_path, url=url)
    assert not (tmp_path / "train-labels-idx1-ubyte.gz").exists()
    assert main(["download", "mnist", str(tmp_path), "--url", url]) == 2
    assert "hash" in capsys.readouterr().err


def test_the_command_and_its_refusals(server, tmp_path, capsys):
    url, files, _ = server
    assert main(["download", "mnist", str(tmp_path), "--url", url]) == 0
    assert f"Files of mnist: {tmp_path}" in capsys.readouterr().out
    assert main(["download", "imagenet", str(tmp_path)]) == 2
    assert "name must be one of" in capsys.readouterr().err
    del files["t10k-labels-idx1-ubyte.gz"]
    assert main(["download", "mnist", str(tmp_path / "other"), "--url", url]) == 2
    assert "404" in capsys.readouterr().err
