"""A training step of `gatelib.nn.LSTM` beside `torch.nn.LSTM`, on the same weights and input.
Imports gatelib.nn, torch and the harness.
Must not import gatelib.reference or gatelib.lab.

Run: python benchmarks/lstm.py [--rounds N] [--device cpu|cuda]
"""

from drop_in import main

if __name__ == "__main__":
    main("LSTM", [(32, 128, 64, 128), (64, 256, 128, 256), (1, 1, 8, 8)], __doc__)
