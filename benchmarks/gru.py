"""A training step of `gatelib.nn.GRU` beside `torch.nn.GRU`, on the same weights and input.
Imports gatelib.nn, torch and the harness.
Must not import gatelib.reference or gatelib.lab.

Run: python benchmarks/gru.py [--rounds N] [--device cpu|cuda]
"""

from drop_in import main

if __name__ == "__main__":
    main("GRU", [(16, 32, 32, 64), (32, 128, 64, 128), (64, 256, 128, 256)], __doc__)
