"""The workshop's catalogue: the gates of the book, and what the page shows of each.

Imports Sphinx and `answers` beside it at once, gatelib when the catalogue is written.
Must not import torch.

`_static/catalogue/index.js` names the gates and holds the first one's sheet; one script a family
holds the other sheets, and the page loads it when one of its gates is chosen.
"""

from __future__ import annotations

import functools
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import answers
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer

PAGE = "book/workshop"
WHERE = "catalogue"
FIRST = "lstm"
FAMILIES = {  # in the order of the chapters: {family: (title, chapter)}
    "gate": ("Single gates", "01_gate"),
    "training": ("Losses and optimisers", "02_training"),
    "depth": ("Depth", "03_depth"),
    "highway": ("Highway layers", "04_highway"),
    "rnn": ("Plain recurrent units", "05_rnn"),
    "lstm": ("The LSTM and its variants", "06_lstm"),
    "janet": ("JANET", "06_lstm"),
    "gru": ("The GRU and its variants", "07_gru"),
    "stacks": ("Between recurrent layers", "08_stacks"),
    "gated_stack": ("Gated depth between LSTMs", "08_stacks"),
    "pooling": ("Pooling over time", "08_stacks"),
    "context_gate": ("Context gates", "09_seq2seq"),
    "pointer": ("The copying switch", "09_seq2seq"),
    "glu": ("Gated linear units", "10_glu"),
    "gmlp": ("gMLP", "11_gmlp"),
    "vision": ("Gates over channels", "12_vision"),
    "attention": ("Attention", "13_attention"),
    "gated_attention": ("Around gated attention", "13_attention"),
    "gau": ("The gated attention unit", "13_attention"),
    "gtrxl": ("GTrXL", "04_highway"),
    "routers": ("Routers", "14_moe"),
    "balance": ("Balancing experts", "14_moe"),
    "moe": ("Mixtures of experts", "14_moe"),
    "searched": ("Cells that searches found", "20_search"),
}
TITLES = {
    "lstm": "LSTM", "peephole": "LSTM with peepholes", "cifg": "LSTM with coupled gates",
    "layernorm": "LSTM with layer normalisation", "article": "“LSTM” of article A",
    "layernorm_apart": "LSTM with layer normalisation, x and h apart", "gru": "GRU",
    "no_reset": "GRU without a reset gate", "light": "Li-GRU", "leaky": "unit with learned leaks",
    "reset_only": "GRU without an update gate", "reset_input": "GRU that resets its input",
    "mgu_after": "minimal gated unit", "janet": "JANET", "elman": "Elman’s unit",
    "linear_rnn": "linear unit", "relu_rnn": "rectified unit", "leaky_rnn": "leaky unit",
    "clipped_relu_rnn": "clipped rectified unit", "glu": "GLU", "gtu": "GTU", "reglu": "ReGLU",
    "geglu": "GEGLU", "geglu_tanh": "GEGLU, tanh form", "swiglu": "SwiGLU", "film": "FiLM",
    "bilinear_glu": "bilinear GLU", "sgd": "SGD", "rmsprop": "RMSprop", "adam": "Adam",
    "adamw": "AdamW", "situ_glu": "SiTU-GLU", "gpt_oss_glu": "GLU of gpt-oss",
    "deepseek_v4_glu": "GLU of DeepSeek-V4", "relu_squared_glu": "squared ReLU GLU",
}  # fmt: skip
# Where an input may lie and where it starts, by family; elsewhere −6 … 6. `0|1` is a switch.
RANGES = {
    "gate": "t=1 (0.1..4), u=0.5 (0.02..0.98), g=0.5 (0..1)",
    "training": "eta=0.1 (0..1), mu=0.9 (0..1), alpha=0.9 (0..1), beta1=0.9 (0..1), "
    "beta2=0.9 (0..1), epsilon=0.01 (0..1), decay=0 (0..1), p_prev=1 (0..1), q_prev=1 (0..1), "
    "s_prev=0.01 (0..4), v_prev=0.01 (0..4), y=1 (0..1), p=0.5 (0.02..0.98), t=1 (0..3)",
    "depth": "m=1 (0|1), keep=0.8 (0.1..1)",
    "stacks": "m=1 (0|1), keep=0.8 (0.1..1), g=0.5 (0..1)",
    "pooling": "mask=1 (0|1), k=1 (-4..4)",
    "pointer": "u=0.6 (0..1), v=0.2 (0..1), l_u=-1 (-8..0), l_v=-2 (-8..0)",
    "gmlp": "mask=1 (0|1)",
    "vision": "m=1 (0|1)",
    "attention": "mask=1 (0|1), d=4 (1..64), n=4 (1..16), r=2 (0..12), m=0.25 (0..1), "
    "l_i=-1 (-6..0), l_j=-2 (-6..0)",
    "gated_attention": "l_i=-1 (-6..0), l_j=-2 (-6..0), r=2 (0..12), m=0.25 (0..1), "
    "c=0.8 (-1..1), s=0.6 (-1..1)",
    "gau": "mask=1 (0|1), n=4 (1..16)",
    "routers": "mask=1 (0|1), c=1 (0..4)",
    "balance": "f=0.25 (0..1), p=0.25 (0.01..1), n=4 (1..64), k=1 (1..8), c=8 (0..16), "
    "eta=0.1 (0..1), I=2 (0.1..4), L=2 (0.1..4)",
    "moe": "w=0.5 (0..1), keep=1 (0|1)",
}
SLIDER = re.compile(r"(\w+)=([-\d.]+) \(([-\d.]+?)(\.\.|\|)([-\d.]+)\)")


# ---- which gates ---------------------------------------------------------------------------


def gates() -> dict[str, dict[str, Any]]:
    """{family: {name: Spec}}: every cell of the book that is one Spec, families as chapters go.

    A cell of several stages has a matrix product between its equations, and is no gate by itself.
    """
    from gatelib import equations

    order = [*FAMILIES, *equations.FAMILIES]
    found = {}
    for family in dict.fromkeys(name for name in order if name in equations.FAMILIES):
        cells = importlib.import_module(f"gatelib.equations.{family}").ALL
        found[family] = {name: c.spec for name, c in cells.items() if len(c.stages) == 1}
    return {family: specs for family, specs in found.items() if specs}


def title(name: str) -> str:
    """A gate's name for a reader."""
    return TITLES.get(name, name.replace("_", " "))


@functools.cache
def said(family: str) -> dict[str, str]:
    """What a family's module says of each of its gates: the docstring below it, by its name."""
    name = f"gatelib.equations.{family}"
    module = importlib.import_module(name)
    found = {}
    for (_, variable), doc in ModuleAnalyzer.for_module(name).find_attr_docs().items():
        first = " ".join(doc).strip().split("  ")[0]
        found[getattr(getattr(module, variable), "name", "")] = first.replace("`", "")
    return found


def ranges(family: str, spec: Any) -> dict[str, dict[str, float]]:
    """{input: {value, low, high, step}} for the inputs that have a range of their own."""
    found = {}
    for name, value, low, kind, high in SLIDER.findall(RANGES.get(family, "")):
        if name in map(str, spec.inputs):
            width = float(high) - float(low)
            step = 1.0 if kind == "|" or width > 8 else 0.02 if width <= 1 else 0.1
            numbers = {"value": float(value), "low": float(low), "high": float(high), "step": step}
            found[name] = numbers
    return found


def text_of(spec: Any) -> str:
    """A Spec as a reader would type it: its text without indents and without the derived names."""
    lines = (line.strip() for line in repr(spec).splitlines())
    return "\n".join(line for line in lines if not line.startswith("#"))


def texts() -> list[str]:
    """The text of every gate."""
    return [text_of(spec) for specs in gates().values() for spec in specs.values()]


# ---- what is written -----------------------------------------------------------------------


def group(family: str, specs: dict[str, Any], pages: set[str]) -> dict[str, Any]:
    """One family as the page lists it."""
    name, chapter = FAMILIES.get(family, (family.replace("_", " "), ""))
    listed = [
        {
            "title": title(gate),
            "about": said(family).get(gate, ""),
            "text": text_of(spec),
            "sliders": ranges(family, spec),
        }
        for gate, spec in specs.items()
    ]
    link = None
    if (page := f"chapters/{chapter}") in pages:
        link = {"href": f"{page}.html", "title": f"Chapter {int(chapter[:2])}"}
    return {"family": family, "title": name, "chapter": link, "gates": listed}


def scripts(pages: set[str]) -> Iterator[tuple[str, str]]:
    """Each script by its name: the sheets of each family, then the index of all gates."""
    groups, first = [], {}
    for family, specs in gates().items():
        sheets = {text: answers.of(text) for text in map(text_of, specs.values())}
        groups.append(group(family, specs, pages))
        first |= {text_of(spec): sheets[text_of(spec)] for n, spec in specs.items() if n == FIRST}
        yield f"{family}.js", f"Object.assign(GatesCatalogue.sheets, {packed(sheets)});\n"
    index = packed({"groups": groups, "sheets": first})
    yield "index.js", f"globalThis.GatesCatalogue = {index};\n"


def packed(data: Any) -> str:
    """Data as JavaScript."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def is_wanted(app: Sphinx) -> bool:
    """Whether a build has the page that reads the catalogue."""
    return app.builder.name == "html" and PAGE in app.env.found_docs


def begin(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Have what isn't known yet worked out while the pages are built."""
    if is_wanted(app):
        answers.begin(texts())


def write(app: Sphinx, error: Exception | None) -> None:
    """Write the catalogue beside the page's scripts."""
    answers.wait()
    if error is not None or not is_wanted(app):
        return
    folder = Path(app.outdir, "_static", WHERE)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in scripts(set(app.env.found_docs)):
        (folder / name).write_text(text, encoding="utf8")


def setup(app: Sphinx) -> None:
    """Begin with the build, and write at its end."""
    app.connect("env-before-read-docs", begin)
    app.connect("build-finished", write)
