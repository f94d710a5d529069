"""Generated source runs like a module whose lines can be seen."""

import importlib
import inspect
import linecache
import traceback

import pytest

from gatelib.load import load

SOURCE = "def half(x):\n    return x / two\n"


def test_source_sees_the_names_that_are_known():
    assert load(SOURCE, "tests half", {"two": 2})["half"](3) == 1.5


def test_lines_are_shown_to_readers_and_in_tracebacks():
    half = load(SOURCE, "tests half")["half"]
    linecache.checkcache()
    assert inspect.getsource(half) == SOURCE
    with pytest.raises(NameError) as caught:
        half(1)
    assert "return x / two" in "".join(traceback.format_exception(caught.value))


def test_equal_text_has_an_equal_name_and_other_text_another():
    one, again = (load(SOURCE, "tests half")["half"].__code__.co_filename for _ in range(2))
    other = load(SOURCE + "\n", "tests half")["half"].__code__.co_filename
    assert one == again != other
    assert one == "<gatelib tests half 53b03e0bbcd5e53f>"  # the same in every process


def test_a_loaded_function_is_found_in_the_module_that_it_names():
    function = load("def double(x):\n    return 2 * x\n", "numpy double")["double"]
    assert importlib.import_module(function.__module__).double is function
