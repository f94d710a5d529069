"""What the pages take from npm: pinned by one lock file, fetched once, and clear when it cannot be.

Imports tools.vendor.
Must not import gatelib: the assets know nothing of gates.
"""

from __future__ import annotations

import json
import time

import pytest

from tools import vendor

LOCK = json.loads((vendor.PINNED / "package-lock.json").read_text())
PACKAGE = json.loads((vendor.PINNED / "package.json").read_text())


def test_every_package_is_pinned_by_version_and_hash_and_names_no_host():
    for name, entry in LOCK["packages"].items():
        if name:
            assert entry["integrity"].startswith("sha512-"), name
            assert "resolved" not in entry, name
    assert LOCK["packages"][""]["dependencies"] == PACKAGE["dependencies"]
    for name, version in PACKAGE["dependencies"].items():
        assert LOCK["packages"][f"node_modules/{name}"]["version"] == version


def test_every_file_that_is_taken_belongs_to_a_package_that_is_asked_for():
    for source in vendor.FILES:
        assert any(source.startswith(f"{name}/") for name in PACKAGE["dependencies"]), source


def test_assets_are_complete_only_with_every_file_of_these_versions(tmp_path):
    for name in vendor.FILES.values():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert not vendor.is_complete(tmp_path)
    (tmp_path / "stamp").write_text(vendor.stamp())
    assert vendor.is_complete(tmp_path)
    (tmp_path / "site" / "katex" / "katex.min.css").unlink()
    assert not vendor.is_complete(tmp_path)


def test_without_a_network_it_says_so_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9/")
    start = time.monotonic()
    with pytest.raises(vendor.VendorError, match=r"network is needed once.*ECONNREFUSED"):
        vendor.ensure(tmp_path)
    assert time.monotonic() - start < 40
    assert not any(tmp_path.iterdir())


def test_another_archive_than_the_pinned_one_is_refused():
    said = (
        "npm error code EINTEGRITY\n"
        "npm error sha512-a= integrity checksum failed when using sha512: wanted sha512-a= but got"
    )
    message = vendor.reason(said)
    assert message.startswith("a package is not the one that book/npm/package-lock.json pins: ")
    assert message.endswith("wanted sha512-a= but got")
