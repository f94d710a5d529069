"""The agreement matrix: independent witnesses of one gate, compared output by output.

Imports NumPy.
Must not import the floors below; it compares the arrays it is given.

Only bounds are shown, never digits of an error: rounding differs between processors, while a bound
with room to spare does not, so the printed table can be compared to the letter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["BOUNDS", "MIME", "Agreement", "agreement", "error_bound"]

MIME = "application/vnd.gates.agreement+json"
BOUNDS = (1e-12, 1e-8, 1e-5, 1e-1)
"""What an error may be shown to be below: float64 over long sums, iterations, float32, bfloat16."""

Outputs = Mapping[str, Any]
Witness = Outputs | Callable[[], Outputs]


def error_bound(error: float) -> str:
    """Return the smallest bound that holds, as text: "≤ 1e-12", …, or "> 1e-01"."""
    for bound in BOUNDS:
        if error <= bound:
            return f"≤ {bound:.0e}"
    return f"> {BOUNDS[-1]:.0e}" if np.isfinite(error) else "not finite"


class Agreement:
    """The largest error of every witness in every output, against the first witness.

    An error is max|a - b| / max(1, max|b|), with b from the reference: absolute for small
    arrays, relative for large ones. Where both hold the same infinity, they agree.

    Attributes:
        name: what was compared.
        reference: the name of the first witness.
        errors: {witness: {output: error}}, without the reference; None where it gave no output.
    """

    def __init__(
        self, name: str, reference: str, errors: dict[str, dict[str, float | None]]
    ) -> None:
        self.name, self.reference, self.errors = name, reference, errors

    @property
    def worst(self) -> float:
        """The largest error of all."""
        return max(self.worst_of(witness) for witness in self.errors)

    def worst_of(self, witness: str) -> float:
        """The largest error of one witness."""
        return max(error for error in self.errors[witness].values() if error is not None)

    def assert_below(self, bound: float = 1e-10, **bounds: float) -> Agreement:
        """Raise AssertionError if an error exceeds `bound`; `witness=bound` overrides it.

        Returns the matrix, so that a cell may end with the assertion and show the table.
        """
        unknown = sorted(set(bounds) - set(self.errors))
        if unknown:
            raise ValueError(f"bounds: expected witnesses of {sorted(self.errors)}, got {unknown}")
        wrong = [
            f"{witness} differs from {self.reference} in {output} by {error:.3g}"
            for witness, row in self.errors.items()
            for output, error in row.items()
            if error is not None and not error <= bounds.get(witness, bound)
        ]
        if wrong:
            raise AssertionError(f"{self.name}: " + "; ".join(wrong))
        return self

    def table(self) -> list[list[str]]:
        """The matrix as text: a header, a row for each output, and the largest of each witness."""
        outputs = list(next(iter(self.errors.values())))
        rows = [[output, *(self._cell(w, output) for w in self.errors)] for output in outputs]
        largest = ["largest", *(error_bound(self.worst_of(w)) for w in self.errors)]
        return [[f"against {self.reference}", *self.errors], *rows, largest]

    def _cell(self, witness: str, output: str) -> str:
        error = self.errors[witness][output]
        return "not given" if error is None else error_bound(error)

    def __repr__(self) -> str:
        rows = self.table()
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([self.name, *lines[:-1], "-" * len(lines[0]), lines[-1]])

    def _repr_html_(self) -> str:
        head, *body = self.table()
        top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
        rows = "".join(
            f'<tr><th scope="row">{escape(row[0])}</th>'
            + "".join(f"<td>{escape(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in body
        )
        return (
            f'<table class="gates-agreement"><caption>{escape(self.name)}</caption>'
            f"<thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table>"
        )

    def to_json(self) -> dict[str, Any]:
        """What the site's agreement page is made from; bounds only, the same everywhere."""
        head, *body = self.table()
        return {
            "version": 1,
            "name": self.name,
            "reference": self.reference,
            "witnesses": head[1:],
            "outputs": [row[0] for row in body[:-1]],
            "bounds": {
                witness: {row[0]: row[column + 1] for row in body[:-1]}
                for column, witness in enumerate(head[1:])
            },
            "largest": dict(zip(head[1:], body[-1][1:], strict=True)),
        }

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, Any]:
        return {"text/plain": repr(self), "text/html": self._repr_html_(), MIME: self.to_json()}


def _array(witness: str, output: str, value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if str(value.dtype) in ("torch.bfloat16", "torch.float16") else value
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or array.size == 0:
        raise TypeError(
            f"{witness}[{output!r}]: expected a non-empty array of numbers, "
            f"got {type(value).__name__} of dtype {array.dtype} and shape {array.shape}"
        )
    return array.astype(np.float64)


def _error(found: NDArray[Any], expected: NDArray[Any]) -> float:
    with np.errstate(invalid="ignore"):
        difference = np.where(found == expected, 0.0, np.abs(found - expected))
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)))
    largest = float(difference.max())
    return largest / scale if np.isfinite(largest) else float("inf")


def _compare(witness: str, given: dict[str, Any], expected: dict[str, Any]) -> dict[str, Any]:
    errors: dict[str, float | None] = {}
    for output, wanted in expected.items():
        if output not in given:
            errors[output] = None
            continue
        if given[output].shape != wanted.shape:
            raise ValueError(
                f"{witness}[{output!r}]: expected shape {wanted.shape} as in the reference, "
                f"got {given[output].shape}"
            )
        errors[output] = _error(given[output], wanted)
    return errors


def _given(witnesses: Mapping[str, Witness]) -> dict[str, dict[str, NDArray[Any]]]:
    if len(witnesses) < 2:
        raise ValueError(f"witnesses: expected at least two, got {list(witnesses)}")
    results = {name: w() if callable(w) else w for name, w in witnesses.items()}
    for name, result in results.items():
        if not (isinstance(result, Mapping) and len(result)):  # type: ignore[redundant-expr]
            raise TypeError(f"{name}: expected a non-empty dict of arrays, got {result!r:.80}")
    return {
        name: {output: _array(name, output, value) for output, value in result.items()}
        for name, result in results.items()
    }


def agreement(
    witnesses: Mapping[str, Witness], *, name: str = "agreement", may_skip: Collection[str] = ()
) -> Agreement:
    """Compare every output and gradient of all witnesses with the first one's.

    Args:
        witnesses: {witness: {output: array}}, or a callable that returns the inner dict. Arrays are
            NumPy's or torch's; they are compared in float64. The first witness is the reference.
        name: what is compared; the title of the table.
        may_skip: outputs that a witness need not give; the table then says "not given".

    Raises:
        ValueError: fewer than two witnesses, an output that is missing, unknown to the reference,
            or of another shape.
        TypeError: something is not an array of numbers.
    """
    given = _given(witnesses)
    reference, *others = given
    for witness in others:
        wanted, found = set(given[reference]), set(given[witness])
        missing, unknown = sorted(wanted - found - set(may_skip)), sorted(found - wanted)
        if missing or unknown:
            raise ValueError(
                f"{witness}: expected the outputs of {reference}; missing {missing}, "
                f"unknown {unknown}"
            )
        if not wanted & found:
            raise ValueError(f"{witness}: expected at least one output of {reference}, got none")
    return Agreement(name, reference, {w: _compare(w, given[w], given[reference]) for w in others})
