"""The house: locked versions, import floors, clean files, targets, and the stage runner.

Imports Hypothesis, packaging, PyYAML, tools.stages.
Must not import gatelib in this process: what it loads is tested in processes of its own.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from hypothesis import settings
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from tools import colab, stages

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
UNLOCKED = {"dask", "distributed", "numba"}  # of extras that nothing in the book needs
HEAVY = ("matplotlib", "mlxtend", "numba", "scipy", "sklearn", "sympy", "torch", "triton")


def locked() -> dict[str, Requirement]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in found}


def direct() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    texts = [*PROJECT["dependencies"], *(text for extra in extras for text in extra)]
    return [r for r in map(Requirement, texts) if r.name != "gatelib"]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=100
    )


def tracked_files() -> list[Path]:
    """The files that git keeps, or would keep if they were added now."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this folder is not a git repository")
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


# --- versions ---------------------------------------------------------------------------------


def test_every_line_of_the_lock_is_one_exact_version():
    for requirement in locked().values():
        operators = [specifier.operator for specifier in requirement.specifier]
        assert operators == ["=="], requirement
        assert not re.search(r"[*+]", str(requirement.specifier)), requirement


def test_the_lock_names_no_package_twice():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert len(locked()) == sum(1 for line in lines if line and not line.startswith("#"))


def test_every_direct_dependency_is_locked_within_its_range():
    versions = locked()
    for requirement in direct():
        name = canonicalize_name(requirement.name)
        if name not in UNLOCKED:
            (version,) = [s.version for s in versions[name].specifier]
            assert requirement.specifier.contains(version), requirement


def test_the_lock_is_what_is_installed():
    from importlib.metadata import PackageNotFoundError, version

    differing = {}
    for name, requirement in locked().items():
        if requirement.marker is None or requirement.marker.evaluate():
            try:
                found = version(name).split("+")[0]
            except PackageNotFoundError:
                found = "missing"
            if not requirement.specifier.contains(found, prereleases=True):
                differing[str(requirement)] = found
    assert not differing


PYTHONS = ("3.11.2", "3.12.0", "3.12.3", "3.13.0", "3.13.9")


def test_every_locked_package_installs_on_every_python_that_is_promised():
    from importlib.metadata import PackageNotFoundError, metadata

    refused = {}
    for name, requirement in locked().items():
        try:
            asked = SpecifierSet(metadata(name).get("Requires-Python") or "")
        except PackageNotFoundError:  # of another platform, or missed by the test above
            continue
        if missing := [version for version in PYTHONS if not asked.contains(version)]:
            refused[str(requirement)] = (str(asked), missing)
    assert not refused


LINUX = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
MACOS = {"sys_platform": "darwin", "platform_system": "Darwin", "platform_machine": "arm64"}
MACHINES = [
    {"python_version": v.rpartition(".")[0], "python_full_version": v, "extra": ""} | system
    for v in PYTHONS
    for system in (LINUX, MACOS)
]
CUDA = ("cuda-", "nvidia-")  # torch pins them itself, for Linux


def asked_somewhere(requirement: Requirement) -> bool:
    """Whether a promised Python on Linux or macOS needs it."""
    marker = requirement.marker
    return marker is None or any(marker.evaluate(machine) for machine in MACHINES)


def test_what_a_locked_package_needs_on_any_machine_is_locked_in_a_version_it_accepts():
    from importlib.metadata import PackageNotFoundError, requires

    versions, wrong = locked(), []
    for name in versions:
        try:
            needs = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:  # of another platform
            continue
        for need in filter(asked_somewhere, needs):
            found = versions.get(canonicalize_name(need.name))
            version = next(iter(found.specifier)).version if found else "nothing"
            if not found or not need.specifier.contains(version, prereleases=True):
                wrong.append(f"{name} needs {need}, and the lock has {version}")
    assert not [line for line in wrong if not line.split(" needs ")[1].startswith(CUDA)]


def test_every_place_that_names_the_python_says_the_same():
    asked = SpecifierSet(PROJECT["requires-python"])
    assert [v for v in ("3.11.1", *PYTHONS) if asked.contains(v)] == [*PYTHONS]
    named = {line.split(":: ")[-1] for line in PROJECT["classifiers"] if "Python :: 3." in line}
    assert named == {"3.11", "3.12", "3.13"}
    for file in ("README.md", "CONTRIBUTING.md", "book/index.md", "Makefile"):
        assert "Python 3.11.2 to 3.13" in (ROOT / file).read_text(), file


def test_every_locked_package_is_needed():
    """Each is a direct dependency, the build backend, or required by one that is."""
    from importlib.metadata import PackageNotFoundError, requires

    needed, todo = set(), [r.name for r in direct()] + ["setuptools"]
    while todo:
        name = canonicalize_name(todo.pop())
        if name in needed:
            continue
        needed.add(name)
        try:
            todo += [Requirement(text).name for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
    assert set(locked()) <= needed


def test_conda_reads_the_lock_and_the_same_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python_version, pip, packages = environment["dependencies"]
    assert (python_version, pip) == ("python=3.11", "pip")
    assert packages == {"pip": ["-r requirements.lock", "-e ."]}
    assert SpecifierSet(PROJECT["requires-python"]).contains("3.11.2")
    assert (ROOT / "binder" / "runtime.txt").read_text().strip() == "python-3.11"


def test_binder_installs_the_lock():
    line = (ROOT / "binder" / "requirements.txt").read_text().strip()
    assert (ROOT / "binder" / line.removeprefix("-r ")).resolve() == ROOT / "requirements.lock"


def test_the_version_is_one():
    found = python("import gatelib; print(gatelib.__version__)").stdout.strip()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found == PROJECT["version"] == citation["version"]


def test_contributing_says_why_each_dependency_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    table = text.split("### Why each dependency is there")[1].split("\n## ")[0]
    explained = {
        name.strip() for row in table.split("\n|") for name in row.split("|")[0].split(",")
    }
    assert {canonicalize_name(r.name) for r in direct()} | {"setuptools"} <= explained


def test_the_examples_of_the_readme_run():
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert blocks
    result = python("\n".join(blocks))
    assert result.returncode == 0, result.stderr


# --- floors -----------------------------------------------------------------------------------


def test_floors_import_downwards_only():
    command = [*stages.script("lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_every_floor_has_a_contract():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    under_contract = {m for c in config["contracts"] for m in c.get("source_modules", [])}
    files = [p for p in (ROOT / "gatelib").iterdir() if p.suffix == ".py" or p.is_dir()]
    names = {f"gatelib.{p.stem}" for p in files if not p.stem.startswith("__")}
    assert names == {".".join(m.split(".")[:2]) for m in under_contract}


def imported(path: Path) -> set[str]:
    """The first two parts of the name of each module that a file imports, wherever it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are absolute"
            names.add(node.module or "")
            if node.module == "gatelib":
                names |= {f"gatelib.{alias.name}" for alias in node.names}
    return {".".join(name.split(".")[:2]) for name in names} - {"gatelib"}


def test_reference_imports_numpy_and_the_standard_library_alone():
    for path in (ROOT / "gatelib" / "reference").glob("*.py"):
        for name in imported(path):
            package = name.split(".")[0]
            allowed = package == "numpy" or package in sys.stdlib_module_names
            assert allowed or name == "gatelib.reference", f"{path.name} imports {name}"


def test_importing_gatelib_loads_nothing_heavy():
    result = python(f"import sys, gatelib; print([m for m in {HEAVY} if m in sys.modules])")
    assert result.stdout.strip() == "[]", result.stderr


LIGHT = ("spec", "printers", "equations.lstm", "reference.lstm", "derived")


@pytest.mark.parametrize("floor", LIGHT)
def test_light_floors_load_no_torch(floor):
    result = python(
        f"import sys, gatelib.{floor}; print({{'torch', 'triton', 'scipy'}} & {{*sys.modules}})"
    )
    assert result.stdout.strip() == "set()", result.stderr


def test_reference_works_where_only_numpy_is_installed():
    others = [name for name in HEAVY if name != "numpy"]
    result = python(
        f"import sys; sys.modules.update(dict.fromkeys({others}))\n"
        "import importlib, pkgutil, gatelib.reference as floor\n"
        "for m in pkgutil.iter_modules(floor.__path__): importlib.import_module("
        "'gatelib.reference.' + m.name)"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    "path", sorted((ROOT / "gatelib").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_module_says_what_it_is_and_what_it_may_import(path):
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    assert re.search(r"\bImports\b", text), "its docstring says what it imports"
    assert re.search(r"\bMust not (be )?import", text), "its docstring says what it must not import"


# --- what is in the files ---------------------------------------------------------------------

REGISTRIES = ("py" + "pi.org", "pythonhosted" + ".org", "registry.npm" + "js", "ana" + "conda.org")
MACHINE = re.compile(r"(?<![\w.:/\-])/(?:ho" r"me|ro" r"ot|wo" r"rk|Us" r"ers)/[\w.]+")


def text_files() -> list[tuple[str, str]]:
    found = []
    for path in tracked_files():
        try:
            found.append((str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue
    return found


def test_no_file_names_a_package_registry():
    bad = [(name, host) for name, text in text_files() for host in REGISTRIES if host in text]
    assert not bad


def test_no_file_names_a_path_of_one_machine():
    bad = [(name, found[0]) for name, text in text_files() if (found := MACHINE.search(text))]
    assert not bad


def test_no_large_file_is_kept():
    big = [p.name for p in tracked_files() if p.stat().st_size > 2_000_000]
    assert not big


# --- commands ---------------------------------------------------------------------------------

TARGETS = ("book", "test", "random", "chapters", "lab", "text", "execute", "bench", "pdf", "clean")


@pytest.mark.parametrize("target", TARGETS)
def test_make_knows_the_target(target):
    result = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_make_names_its_targets_when_called_without_one():
    shown = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True).stdout
    assert all(f"make {target} " in shown for target in TARGETS)


def test_workflows_are_yaml_and_run_what_a_reader_runs():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert yaml.safe_load(path.read_text())["jobs"]
    assert "run: .ci/run" in (ROOT / ".github" / "workflows" / "validate.yml").read_text()
    assert "make test FRESH=1" in (ROOT / ".ci" / "run").read_text()


def test_colab_copies_install_gatelib_first():
    notebook = {"cells": [{"cell_type": "markdown", "source": ["# T"]}], "nbformat": 4}
    copied = colab.with_installation(notebook, "https://example.org/o/gates")
    assert "git+https://example.org/o/gates" in copied["cells"][0]["source"][0]
    assert copied["cells"][1:] == notebook["cells"]
    assert "install" not in str(notebook)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ('repository: ""   # the address\nurl: ""', ""),
        ('repository: "https://example.org/o/gates/"  # here', "https://example.org/o/gates"),
        ("repository: https://example.org/o/gates\nbranch: main", "https://example.org/o/gates"),
        ("url: x", ""),
    ],
)
def test_colab_reads_the_one_address(text, address):
    assert colab.repository(text) == address


# --- random tests -----------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["ci", "dev", "wide"])
def test_random_tests_remember_no_failure_and_have_no_deadline(profile):
    chosen = settings.get_profile(profile)
    assert chosen.database is None and chosen.deadline is None
    assert chosen.derandomize == (profile == "ci")


def test_what_validates_draws_the_same_examples_each_time():
    assert 'load_profile("ci")' in (ROOT / "tests" / "conftest.py").read_text()
    assert "--hypothesis-profile=wide" in (ROOT / "Makefile").read_text()
    weekly = yaml.safe_load((ROOT / ".github" / "workflows" / "random.yml").read_text())
    runs = [step["run"] for step in weekly["jobs"]["random"]["steps"] if "run" in step]
    assert "make random RUNS=20" in runs
    assert all("--hypothesis-profile=wide" in run for run in runs if "pytest" in run)


def test_no_test_chooses_its_own_way_to_draw():
    """The profiles decide; a test says at most how many examples it needs."""
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    found = [path for path in files if re.search(r"\b(derandomize|database)=", path.read_text())]
    assert not found
