"""Code that one chapter shares with its benchmark: `support/NAME.py` for chapter NN_NAME.

A chapter runs in its own folder, so `from support.highway import net` finds it.
"""
