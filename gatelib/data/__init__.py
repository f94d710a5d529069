"""Data sets that need no download: real ones from installed packages, and diagnostics.

Imports its own modules. They read the files of data packages without importing them.
Must not import torch, SymPy or any other floor of gatelib.

One module per source: ``mnist``, ``digits``, ``reviews``, ``segmentation``, ``translation`` and
``names`` are real, ``detection`` and ``video`` place real digits on photographs and in films,
``diagnostics`` is made up on the spot.
Every loader returns a ``Dataset`` of two ``Split``s, ``train`` and ``test``;
``with_validation`` sets a third apart from ``train``, on which to choose. ``detection`` and
``video`` return all three, since several of their examples may show one digit.
Text comes as text; ``words``, ``Vocabulary`` and ``pad`` make numbers of it.
"""

from gatelib.data._package import DataPackageMissing
from gatelib.data._split import Dataset, Split, Validated, with_validation
from gatelib.data.vocabulary import Vocabulary, pad, words

__all__ = [
    "DataPackageMissing",
    "Dataset",
    "Split",
    "Validated",
    "Vocabulary",
    "pad",
    "with_validation",
    "words",
]
