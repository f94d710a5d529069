"""Code beside a chapter, `support/NAME.py` for NN_NAME: for a benchmark or for a page that is long.

A chapter runs in its own folder, so `from support.highway import net` finds it.
"""
