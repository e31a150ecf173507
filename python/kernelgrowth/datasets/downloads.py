"""MNIST and CIFAR-10 from the network, by name, each file checked against its published checksum."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kernelgrowth._backend.checks import check_choice
from kernelgrowth._backend.errors import BackendError

__all__ = ["DOWNLOADS", "download"]


@dataclass(frozen=True)
class _Archive:
    """Files below a URL, with their MD5 sums; those of an archive are unpacked."""

    url: str
    files: Mapping[str, str]
    unpacked: bool = False


DOWNLOADS: Mapping[str, _Archive] = {
    "mnist": _Archive(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "cifar10": _Archive(
        "https://www.cs.toronto.edu/~kriz/", {"cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a"}, True
    ),
}
"""What `download` knows: "mnist" (11 MiB) and "cifar10" (163 MiB, and as much again unpacked)."""


def download(name: str, root: str | os.PathLike[str], *, url: str | None = None) -> Path:
    """Fetch a data set's files into a folder, from which `mnist` or `cifar10` reads them.

    Files that are there and have the right checksum are not fetched again. A file is kept under its name only once it
    is complete and its checksum is right.

    Parameters
    ----------
    name : {"mnist", "cifar10"}
    root : path-like
        The folder, made where it is missing.
    url : str, optional
        Of a mirror's folder, in place of the publisher's.

    Returns
    -------
    Path
        `root`.

    Raises
    ------
    BackendError
        If pooch is not installed (``pip install "kernelgrowth[download]"``).
    OSError
        If a file cannot be fetched or written.
    ValueError
        If a file's checksum is not the published one, or `name` is unknown.
    """
    check_choice("name", name, tuple(DOWNLOADS))
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise BackendError('downloads need pooch: pip install "kernelgrowth[download]"') from error
    archive = DOWNLOADS[name]
    base = (archive.url if url is None else url).rstrip("/")
    folder = Path(root)
    for file, checksum in archive.files.items():
        processor = pooch.Untar(extract_dir=".") if archive.unpacked else None
        pooch.retrieve(f"{base}/{file}", f"md5:{checksum}", fname=file, path=folder, processor=processor)
    return folder
