"""A reader sees the code that runs: all of it, in small pieces, without docstrings."""

import functools

import pytest

from gatelib.lab.source import Source, show


def documented(x):
    """One line.

    Another.
    """

    # a comment stays
    text = """not a docstring"""
    return x, text


class Box:
    """A box."""

    size = 3

    def double(self):
        """Twice the size."""
        return 2 * self.size

    @property
    def half(self):
        """Half of it."""
        return self.size / 2


def only_documented():
    """Nothing but words."""


def long_one(x):
    x += 1
    x += 2
    x += 3
    x += 4
    x += 5
    x += 6
    x += 7
    x += 8
    x += 9
    x += 10
    x += 11
    x += 12
    x += 13
    x += 14
    x += 15
    x += 16
    x += 17
    x += 18
    x += 19
    x += 20
    x += 21
    x += 22
    x += 23
    x += 24
    return x


def test_the_docstring_goes_and_the_comment_stays():
    assert str(show(documented)) == (
        "def documented(x):\n"
        "    # a comment stays\n"
        '    text = """not a docstring"""\n'
        "    return x, text"
    )


def told(x):
    y = x.anything  # type: ignore[attr-defined, no-any-return]
    z = "# type: ignored"  # type: ignore
    return y, z  # a reader's comment


def test_what_is_said_to_a_checker_of_types_goes():
    body = str(show(told)).splitlines()[1:]
    assert body[:2] == ["    y = x.anything", '    z = "# type: ignored"']
    assert body[2] == "    return y, z  # a reader's comment"


def test_a_method_is_dedented():
    assert str(show(Box.double)) == "def double(self):\n    return 2 * self.size"
    assert str(show(Box().double)) == str(show(Box.double))


def test_a_property_shows_its_getter():
    assert str(show(Box.half)) == "@property\ndef half(self):\n    return self.size / 2"


def test_a_class_loses_all_docstrings():
    shown = str(show(Box))
    assert '"""' not in shown and shown.startswith("class Box:\n    size = 3\n\n    def double")


def test_a_wrapped_function_shows_what_was_wrapped():
    @functools.wraps(documented)
    def wrapper(x):
        return documented(x)

    assert str(show(wrapper)) == str(show(documented))


def test_a_function_of_nothing_but_words_stays_valid():
    compile(str(show(only_documented)), "shown", "exec")


def test_what_is_shown_runs_like_the_original():
    space = {}
    exec(str(show(documented)), space)
    assert space["documented"](5) == documented(5)


def test_several_objects_stand_one_below_the_other():
    assert str(show(documented, Box.double)) == f"{show(documented)}\n\n\n{show(Box.double)}"


def test_more_than_25_lines_must_be_cut():
    with pytest.raises(ValueError, match=r"at most 25 lines at a time, got 26; .* lines="):
        show(long_one)
    shown = str(show(long_one, lines=(24, 26)))
    assert shown == "x += 23\nx += 24\nreturn x"
    assert len(str(show(long_one, lines=(1, 25))).splitlines()) == 25


@pytest.mark.parametrize("lines", [(0, 3), (5, 4), (1, 27)])
def test_lines_outside_the_source_are_refused(lines):
    with pytest.raises(ValueError, match="lines: expected 1 ≤ first ≤ last ≤ 26"):
        show(long_one, lines=lines)


@pytest.mark.parametrize("obj", [3, "text", len, None])
def test_what_has_no_source_is_refused(obj):
    with pytest.raises(TypeError, match="obj: expected a function, method, property or class"):
        show(obj)


def test_nothing_to_show_is_refused():
    with pytest.raises(ValueError, match="objects: expected at least one"):
        show()


def test_a_function_typed_at_a_prompt_has_no_file():
    space = {}
    exec("def typed(): return 1", space)
    with pytest.raises(ValueError, match="obj: no source is known for typed"):
        show(space["typed"])


def test_the_notebook_gets_highlighted_code_and_plain_text():
    bundle = Source("x = 1")._repr_mimebundle_()
    assert bundle == {"text/plain": "x = 1", "text/markdown": "```python\nx = 1\n```"}
