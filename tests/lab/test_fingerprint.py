"""A fingerprint changes with what is computed, and with nothing else, in every Python."""

import ast
import functools
import linecache
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from gatelib import equations, nn
from gatelib.lab import contents
from gatelib.lab.fingerprint import fingerprint, short
from tests.lab.attacked import COUNT, module, of

ROOT = Path(__file__).resolve().parents[2]
# --- what leaves no trace -----------------------------------------------------------------------

PLAIN = """
def half(x):
    return x / 2

def run(cell, lr=0.1):
    total = half(cell)
    for step in range(3):
        total = total * lr + step
    return {"loss": [value for value in (total, cell)]}
"""


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace("    total = half", "    # why\n\n    total = half"),
        PLAIN.replace("def half(x):\n", 'def half(x):\n    """Say."""\n'),
        PLAIN.replace("def half(x):\n", "def half(x):\n    'said'\n    ...\n    pass\n"),
        PLAIN.replace("cell, lr=0.1", "cell: str, lr: float = 0.1").replace("3):", "3):  # hm"),
        PLAIN.replace("    total = half", "    total: float = half"),
        PLAIN.replace("    total = half", "    other: int\n    total = half"),
        PLAIN.replace("total", "sum_").replace("step", "k").replace("value", "half_"),
        PLAIN.replace("total", "step_").replace("value", "total"),
        PLAIN.replace("total * lr + step", "(\n        (total * lr)\n        + step\n    )"),
        PLAIN.replace('"loss"', "'lo' 'ss'").replace("0.1", "1e-1").replace("3", "0b11"),
        PLAIN.replace("(total, cell)", "(total, cell,)").replace("    ", "  "),
        "\n\nunused = 3\n" + PLAIN.replace("def run", "class Unused: pass\n\ndef run"),
    ],
)
def test_comments_layout_annotations_and_local_names_leave_no_trace(other):
    assert of(other) == of(PLAIN)


def test_a_function_that_only_moved_is_the_same():
    first, second = PLAIN.split("\ndef run")
    assert of(f"def run{second}\n{first}") == of(PLAIN)


# --- what counts --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x / 2", "x / 3"),
        ("x / 2", "x // 2"),
        ("x / 2", "x / 2.0"),
        ("x / 2", "2 / x"),
        ("x / 2", "x / -2"),
        ("lr=0.1", "lr=0.2"),
        ("lr=0.1", "lr"),
        ("cell, lr=0.1", "cell, *, lr=0.1"),
        ("cell, lr=0.1", "cell, rate=0.1"),
        ("range(3)", "reversed(range(3))"),
        ("range(3)", "range(3, step=1)"),
        ('"loss"', '"los"'),
        ('"loss"', 'b"loss"'),
        ("(total, cell)", "(cell, total)"),
        ("total * lr + step", "total + lr * step"),
        ("total * lr + step", "total * (lr + step)"),
        ("        total = total", "        cell = total"),
        ("half(cell)", "half(x=cell)"),
        ("    for", "    half(1)\n    for"),
        ("[value for value in (total, cell)]", "{value for value in (total, cell)}"),
    ],
)
def test_numbers_operators_defaults_keywords_and_order_count(old, new):
    text = PLAIN.replace(old, new)
    text = text.replace("lr + step", "rate + step") if "rate=" in new else text
    assert text != PLAIN and of(text) != of(PLAIN)


def test_a_message_can_say_what_changed():
    was, now = of(PLAIN), of(PLAIN.replace("x / 2", "x / 3"))
    assert [place for place in was if was[place] != now[place]] == ["half"]
    assert list(was) == ["half", "run"]


def pairs():
    """{title: (one module, the other)} of differing.txt."""
    text = Path(__file__).with_name("differing.txt").read_text()
    blocks = (block.partition("\n") for block in text.split("\n=== ")[1:])
    return {title: body.split("\n---\n") for title, _, body in blocks}


PAIRS = pairs()


@pytest.mark.parametrize("name", PAIRS)
def test_two_functions_that_differ_have_two_fingerprints(name):
    one, other = PAIRS[name]
    assert of(one) != of(other)
    assert of(one) == of(one)


def test_a_function_that_was_replaced_is_seen_wherever_it_is_read():
    text = "def f(x): return x\ndef g(x): return -x\ndef run(x):\n return f(x)"
    made = module(text)
    before = fingerprint(run=made.run)
    made.f = made.g
    assert fingerprint(run=made.run) != before


def test_a_method_that_was_replaced_by_one_of_the_same_name_is_seen():
    text = "class C:\n def f(self): return 1\ndef run():\n return C().f()\n"
    made = module(text)
    before = fingerprint(run=made.run)
    other = module(text.replace("return 1", "return 2"))
    sys.modules["attacked"] = made
    made.C.f = other.C.f
    assert fingerprint(run=made.run) != before


def test_an_older_function_of_the_same_name_is_another():
    """A cell that was run twice: a dictionary still holds what the first run made."""
    made = module("def f(): return 1\nkept = {'f': f}\ndef run():\n return kept['f']() + f()")
    before = fingerprint(run=made.run)
    made.f = module("def f(): return 1").f
    sys.modules["attacked"] = made
    same_text = fingerprint(run=made.run)
    made.kept["f"] = module("def f(): return 3").f
    sys.modules["attacked"] = made
    assert fingerprint(run=made.run) not in (before, same_text)


def test_a_foreign_function_replaced_by_ours_is_seen(monkeypatch):
    made = module("import torch\ndef mine(x): return -x\ndef run(x):\n return torch.relu(x)")
    before = fingerprint(run=made.run)
    monkeypatch.setattr(torch, "relu", made.mine)
    assert fingerprint(run=made.run) != before


def test_a_foreign_method_replaced_by_ours_is_seen(monkeypatch):
    made = module(
        "from torch.nn import Linear\ndef mine(s, x): return x\ndef run():\n return Linear"
    )
    before = fingerprint(run=made.run)
    monkeypatch.setattr(torch.nn.Linear, "forward", made.mine)
    assert fingerprint(run=made.run) != before


def test_names_given_to_exec_are_not_mixed_up():
    """Two sets of names that both say they are one module."""

    def made(k):
        names = {"__name__": "attacked", "k": k}
        text, file = "def get(): return k", f"<attacked {next(COUNT)}>"
        linecache.cache[file] = (len(text), None, [text], file)
        exec(compile(text, file, "exec", dont_inherit=True), names)
        return names["get"]

    text = "def run():\n return a() - b()"
    one, two = made(1), made(2)
    assert of(text, a=one, b=two) != of(text, a=two, b=one)


# --- values -------------------------------------------------------------------------------------


def seeded(layer, seed):
    torch.manual_seed(seed)
    return layer(2, 3)


DIFFERENT = {
    "an array's element": (np.zeros(3), np.array([0, 0, 1e-300])),
    "an array's type": (np.zeros(3), np.zeros(3, np.float32)),
    "an array's shape": (np.zeros((2, 3)), np.zeros((3, 2))),
    "an array of objects": (np.array([1, "a"], object), np.array([1, "b"], object)),
    "a tensor's element": (torch.zeros(3), torch.tensor([0, 0, 1e-30])),
    "a tensor's type": (torch.zeros(3), torch.zeros(3, dtype=torch.bfloat16)),
    "a tensor and an array": (torch.zeros(3), np.zeros(3, np.float32)),
    "a frozen tensor": (torch.zeros(3), torch.zeros(3, requires_grad=True)),
    "a sparse tensor": (torch.eye(2).to_sparse(), (2 * torch.eye(2)).to_sparse()),
    "a network's weights": (seeded(torch.nn.LSTM, 0), seeded(torch.nn.LSTM, 1)),
    "a network in eval": (torch.nn.Dropout(), torch.nn.Dropout().eval()),
    "a network's option": (torch.nn.Dropout(0.1), torch.nn.Dropout(0.2)),
    "a generator's state": (np.random.default_rng(0), np.random.default_rng(1)),
    "torch's generator": (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
    "a gate": (equations.ALL["lstm"], equations.ALL["gru"]),
    "a gate's number": (equations.ALL["lstm"], equations.ALL["lstm"].spec.subs(f="0.5")),
    "a type": (torch.float32, torch.float64),
    "a class": (torch.nn.LSTM, torch.nn.GRU),
    "a class of another floor": (nn.LSTM, torch.nn.LSTM),
    "a function": (torch.sigmoid, torch.tanh),
    "a partial": (functools.partial(nn.LSTM, 2), functools.partial(nn.LSTM, 3)),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_two_values_that_differ_have_two_fingerprints(name):
    one, other = DIFFERENT[name]
    assert fingerprint(v=one) != fingerprint(v=other)
    assert fingerprint(v=one) == fingerprint(v=one)


def test_a_network_with_tied_weights_is_another():
    one, tied = (torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)) for _ in "ab")
    tied[1].weight.data, one[1].weight.data = (
        tied[0].weight.data.clone(),
        one[0].weight.data.clone(),
    )
    tied.load_state_dict(one.state_dict())
    assert fingerprint(v=one) == fingerprint(v=tied)
    tied[1].weight = tied[0].weight
    assert fingerprint(v=one) != fingerprint(v=tied)


def test_a_gate_that_was_used_is_the_same_gate():
    cell = equations.ALL["lstm"]
    before = fingerprint(v=cell)
    assert cell.gates and fingerprint(v=cell) == before


def test_a_layer_that_was_used_is_the_same_layer():
    layer = nn.Recurrent(equations.ALL["lstm"], 2, 3)
    before = fingerprint(v=layer)
    layer(torch.zeros(1, 2, 2))
    assert fingerprint(v=layer) == before


def test_what_can_be_read_only_once_is_refused_by_its_name():
    with pytest.raises(TypeError, match=r"attacked.rows: .*generator"):
        of("rows = (x for x in [1])\ndef run():\n return list(rows)")


# --- gatelib ------------------------------------------------------------------------------------


def training(text="steps=3"):
    return module(
        "from gatelib import nn\nfrom gatelib.lab import train\nfrom gatelib.nn import init\n"
        "def run(cell, lr, seed):\n"
        " layer = nn.Recurrent(cell, 2, 3)\n init.chrono_(layer, 9)\n"
        f" return train(layer, (0, 1), {text}, lr=lr)"
    ).run


def test_code_of_gatelib_is_named_by_its_module():
    found = fingerprint(run=training())
    assert {"run", "gatelib.lab.training", "gatelib.nn.recurrent", "gatelib.nn.init"} <= set(found)
    assert "gatelib.nn.highway" not in found


def test_a_changed_default_in_gatelib_names_its_module(monkeypatch):
    from gatelib.lab.training import train

    before = fingerprint(run=training())
    monkeypatch.setitem(train.__kwdefaults__, "batch_size", 32)
    after = fingerprint(run=training())
    assert [place for place in before if before[place] != after[place]] == ["gatelib.lab.training"]


def test_training_in_the_same_process_changes_no_fingerprint():
    """The first optimiser loads what wraps functions of torch's own."""
    from gatelib.lab import train

    seeding = "import torch\ndef run(seed):\n torch.manual_seed(seed)\n return torch.nn.Linear"
    before = of(seeding), fingerprint(run=training())
    train(torch.nn.Linear(2, 2), (torch.zeros(4, 2), torch.zeros(4).long()), steps=2, lr=0.1)
    assert (of(seeding), fingerprint(run=training())) == before


def test_what_watches_and_draws_leaves_no_trace():
    found = of(
        "from gatelib.lab import figures, rates, table\nfrom gatelib.lab.fingerprint import short\n"
        "def run():\n return figures.curves, rates(1, 2, 3), table, short"
    )
    assert list(found) == ["run"]


def test_what_gatelib_generates_is_read():
    made = [equations.ALL[name].spec.compile("numpy") for name in ("lstm", "gru")]
    one, other = (of("def run():\n return step", step=step) for step in made)
    assert one != other


def test_a_chapters_function_takes_less_than_fifty_milliseconds():
    run = training()
    fingerprint(run=run)  # reads the sources, once in a process
    least = min(timed(lambda: fingerprint(run=run)) for _ in range(5))
    assert least < 0.05


def timed(call):
    start = time.process_time()
    call()
    return time.process_time() - start


# --- sources ------------------------------------------------------------------------------------


def test_a_function_without_source_is_refused_by_its_name():
    names = {"__name__": "attacked"}
    exec("def lost(): return 1", names)
    with pytest.raises(ValueError, match=r"attacked.lost|lost: no source is known for it"):
        fingerprint(run=names["lost"])


def test_a_file_that_was_edited_after_its_import_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "edited_afterwards.py"
    file.write_text("def run():\n    return 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    import edited_afterwards

    assert fingerprint(run=edited_afterwards.run)
    other = module("import edited_afterwards\n").edited_afterwards
    file.write_text("def run():\n    return 2\n")
    os.utime(file, (0, 0))
    linecache.checkcache()
    exec("", vars(other))
    code = compile("def run():\n    return 1\n", str(file), "exec", dont_inherit=True)
    exec(code, vars(other))
    with pytest.raises(ValueError, match="its source has changed"):
        fingerprint(run=other.run)


def test_lambdas_in_one_line_are_told_apart():
    made = module(
        "pair = (lambda: 1), (lambda: 1 + 0), (lambda x: (lambda: x))\ninner = pair[2](3)\n"
    )
    found = [fingerprint(f=f)["f"] for f in (*made.pair, made.inner)]
    assert len(set(found)) == 4


CELLS = [
    "from gatelib.lab.fingerprint import fingerprint\nimport functools",
    "k = 2\n@functools.cache\ndef helper(x):\n    return x * k",
    "%matplotlib inline\ndef run(seed): return helper(seed) + (lambda v: v)(1)",
    "print(fingerprint(run=run))",
    "# another remark\ndef run(seed):\n    'Says.'\n    return helper(seed) + (lambda v: v)(1)",
    "print(fingerprint(run=run))",
    "k = 3",
    "print(fingerprint(run=run))",
]


def test_cells_of_a_notebook_are_read():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [nbformat.v4.new_code_cell(cell) for cell in CELLS]
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = nbclient.NotebookClient(notebook, kernel_name="python3", timeout=120)
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells):  # as nbval does
            client.execute_cell(cell, index, store_history=False)
    one, two, three = (eval(notebook.cells[i].outputs[0].text) for i in (3, 5, 7))
    assert one == two and list(one) == ["helper", "k", "run"]
    assert [place for place in one if one[place] != three[place]] == ["k"]


# --- Pythons ------------------------------------------------------------------------------------


def interpreters():
    """{version: program} of each Python that the book promises and that is to be found here."""
    found = {f"3.{sys.version_info[1]}": sys.executable}
    folders = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")).glob("versions/*"))
    for version in ("3.11", "3.12", "3.13"):
        near = [str(f / "bin" / "python") for f in folders if f.name.startswith(f"{version}.")]
        for program in (*near, shutil.which(f"python{version}")):
            if program and Path(program).exists():
                found.setdefault(version, program)
    return found


def printed(program, seed):
    """What `fingerprinted.py` prints, without NumPy, torch or anything installed."""
    script = Path(__file__).with_name("fingerprinted.py")
    command = [program, "-I", "-S", str(script), str(ROOT)]
    if seed:
        command = [program, "-s", "-S", str(script), str(ROOT)]
    env = {**os.environ, "PYTHONHASHSEED": seed or "0"}
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    return ast.literal_eval(result.stdout)


def test_every_python_and_every_hash_seed_give_the_same():
    found = interpreters()
    here = printed(sys.executable, "1")
    assert len(here) > 15
    for version, program in found.items():
        assert printed(program, "2") == here, version
    missing = {"3.11", "3.12", "3.13"} - set(found)
    if missing:
        pytest.skip(f"the same on {sorted(found)}; NOT TRIED, not found here: {sorted(missing)}")


def test_the_short_hash_is_eight_digits():
    assert short("gates") == short(b"gates") and len(short("")) == 8


def test_a_literal_type_is_its_text_and_not_what_a_version_of_python_keeps_in_it():
    from typing import Literal

    one, same, other = Literal["a", "b"], Literal["a", "b"], Literal["a", "c"]
    found = [fingerprint(value=each) for each in (one, same, other)]
    assert found[0] == found[1] != found[2]
    assert contents.described(one) == "typing._LiteralGenericAlias typing.Literal['a', 'b']"
