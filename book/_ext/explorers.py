"""The `explorer` directive: a figure that a reader can move, numbered as all figures are.

Imports Sphinx, docutils, and `drawing` and `explorer_options` beside it; gatelib when a page asks
for an explorer. Must not import torch.

    ```{explorer} gatelib.equations.lstm.LSTM
    :view: time
    :show: i f c h
    :sliders: a_i=-2, a_f=3, a_g=0, a_o=2
    :wires: a_i=5*x, a_g=2*x
    :name: fig-lstm-time
    :alt: What is seen.

    The caption.
    ```

The argument names Specs; or equations stand before the caption, ended by a line `---`. The first
picture is drawn here, by the functions that the page runs, so that the figure is there on paper and
without a script. The gates' code goes into one script a page, so that no page has to compile text.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from typing import Any, ClassVar

import drawing
import explorer_options
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

WIDTH = 747  # px of a picture where the page is 1400 px wide
FLAGS = {"slope"}
OPTIONS = (*explorer_options.OWN, "titles")
draughtsman = drawing.Draughtsman()
Data = dict[str, Any]


class Explorer(SphinxDirective):
    """A figure with sliders. See the module's text."""

    optional_arguments = 20
    has_content = True
    option_spec: ClassVar = {
        "view": lambda text: directives.choice(text, drawing.views()),
        "name": directives.unchanged_required,
        **{name: directives.unchanged_required for name in OPTIONS if name not in FLAGS},
        **dict.fromkeys(FLAGS, directives.flag),
    }

    def run(self) -> list[nodes.Node]:
        """Return the figure, or an error where an option is wrong."""
        from gatelib.spec import SpecError

        try:
            specs, caption = self.specs()
            definition = self.definition(specs)
            drawn = draughtsman.draw(definition, WIDTH)
        except (ValueError, SpecError, AttributeError, ImportError) as error:
            raise self.error(f"explorer: {error}") from None
        figure = self.figure(drawn, caption)
        self.remember(figure["ids"][0], definition)
        return [figure]

    def specs(self) -> tuple[list[Any], list[str]]:
        """The gates, and the lines that are left for the caption."""
        lines = list(self.content)
        if not self.arguments and "---" in lines:
            end = lines.index("---")
            return read_all("\n".join(lines[:end])), lines[end + 1 :]
        return [self.named(name) for name in self.arguments], lines

    def named(self, name: str) -> Any:
        """The Spec that an argument names; a cell of several stages as one."""
        module = importlib.import_module(name.rpartition(".")[0])
        self.env.note_dependency(inspect.getfile(module))
        return getattr(module, name.rpartition(".")[2])

    def definition(self, specs: list[Any]) -> Data:
        """What the view draws from."""
        from gatelib import workshop

        for option in ("view", "name", "alt"):
            if option not in self.options:
                raise ValueError(f"expected :{option}:")
        gates = [workshop.brief(spec) for spec in specs]
        return explorer_options.definition(self.options["view"], self.options, gates)

    def remember(self, name: str, definition: Data) -> None:
        """Note what this page's script must hold, and which files the picture was drawn by."""
        need(self.env, self.env.docname, [definition["view"]])
        found = self.env.metadata[self.env.docname].setdefault("explorers", [])
        found.append((name, definition))
        for file in drawing.files([definition["view"]]):
            self.env.note_dependency(str(drawing.STATIC / file))

    def figure(self, drawn: dict[str, str], caption: list[str]) -> nodes.figure:
        """A figure as docutils has it: its picture, its reading, its caption."""
        text = "\n".join(caption).strip()
        if not text:
            raise self.error("explorer: expected a caption")
        inside, _ = self.state.inline_text(text, self.lineno)
        figure = nodes.figure(classes=["explorer"])
        figure += nodes.raw("", picture(drawn), format="html")
        figure += nodes.caption(text, "", *inside)
        self.set_source_info(figure)
        self.add_name(figure)
        return figure


def read_all(text: str) -> list[Any]:
    """Specs, between which empty lines stand."""
    from gatelib.spec import Spec

    return [Spec.read(one) for one in re.split(r"\n\s*\n", text.strip())]


def picture(drawn: dict[str, str]) -> str:
    """What a script takes up, and what stands without one."""
    return (
        f'<div class="explorer-picture"><div class="explorer-drawing">{drawn["svg"]}</div></div>'
        f'<div class="explorer-foot"><p class="explorer-reading">{drawn["reading"]}</p></div>'
        '<div class="explorer-controls" hidden></div>'
    )


# --- the scripts of a page ---------------------------------------------------------------------


def function(source: str) -> str:
    """Generated code as an expression: the last function of a source, with its helpers."""
    name = re.findall(r"^function ([^(]+)", source, re.M)[-1]
    return f"(() => {{\n{source}return {name};\n}})()"


def statement(name: str, definition: Data) -> str:
    """The line that makes one explorer of a page move; its gates' code stands as functions."""
    code = [
        [function(gate["run"][way]) for way in ("forward", "backward")]
        for gate in definition["gates"]
    ]
    listed = ",\n".join(f"[{', '.join(pair)}]" for pair in code)
    bare = [
        gate | {"run": gate["run"] | {"forward": "", "backward": ""}}
        for gate in definition["gates"]
    ]
    data = json.dumps(definition | {"gates": bare}, separators=(",", ":"))
    return f"GatesExplorer.add({json.dumps(name)}, {data}, [{listed}]);\n"


def need(env: BuildEnvironment, docname: str, views: list[str]) -> None:
    """Have a page load some views and the controls around them."""
    known = env.metadata[docname].get("views", [])
    env.metadata[docname]["views"] = sorted({*known, *views})


def load(app: Sphinx, page: str, template: str, context: Data, doctree: Any) -> None:
    """Add scripts and style to a page that has an explorer, and to no other."""
    known = app.env.metadata.get(page, {})
    if app.builder.name == "singlehtml":
        app.add_css_file("explorer.css")
    if app.builder.name != "html" or "views" not in known:
        return
    app.add_css_file("explorer.css")
    for file in (*drawing.files(known["views"]), "explorer.js"):
        app.add_js_file(file, loading_method="defer")
    if "explorers" in known:
        file = f"explorers/{page}.js"
        written = Path(app.outdir, "_static", file)
        written.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(statement(name, definition) for name, definition in known["explorers"])
        written.write_text(f'"use strict";\n{text}', encoding="utf8")
        app.add_js_file(file, loading_method="defer")


def close(app: Sphinx, error: Exception | None) -> None:
    """Stop node."""
    draughtsman.close()


def setup(app: Sphinx) -> None:
    """Register the directive, load scripts where they are needed, stop node at the end."""
    app.add_directive("explorer", Explorer)
    app.connect("html-page-context", load)
    app.connect("build-finished", close)
