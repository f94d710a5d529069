"""A study made by the workers of a Dask cluster; skipped where the extra `cluster` is absent.

Imports distributed and tests.lab.tiny_study.
Must not need another machine: the cluster is two processes of this one.
"""

from __future__ import annotations

import pytest

from tests.lab.tiny_study import chapter, files, library

distributed = pytest.importorskip("distributed", reason="needs the extra `cluster`")
pytestmark = [pytest.mark.usefixtures("main"), pytest.mark.slow]


@pytest.fixture
def cluster(monkeypatch):
    """The address of a scheduler with two workers of one thread."""
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(processes=True, **options) as started:
        yield started.scheduler_address


def made(folder, monkeypatch, address, make):
    """The files of a study that is made in a folder of its own."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GATES_DASK", address)
    library()
    make()
    return files()


def test_a_cluster_gives_the_bytes_that_one_worker_here_gives(making, cluster, monkeypatch):
    def make():
        chapter()["tiny"]()

    here = made(making / "here", monkeypatch, "", make)
    assert made(making / "there", monkeypatch, cluster, make) == here
