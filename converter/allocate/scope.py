"""Which formats are tried for a tensor."""

from __future__ import annotations

from dataclasses import dataclass

from edgetok.converter.options import GROUP_SIZES, ConvertOptions
from edgetok.converter.quantised import fits_float16_scales
from edgetok.formats.layout import TensorFormat

MEASURED_TOKENS = 4096  # of the text; with half of them choices lost up to 13 % more


@dataclass(frozen=True, slots=True)
class Scope:
    """The formats that are tried.

    Attributes:
        least_bits: narrower formats are not.
        wide: every size of groups, and zero points wherever there may be some; else groups of 32
            and the largest whole ones, and no zero points where others lose less for their bytes:
            a table in groups of 32, and 8 bits.
    """

    least_bits: int = 2
    wide: bool = True

    def groups(self, inputs: int) -> tuple[int, ...]:
        """Return the sizes of groups for a matrix with so many inputs."""
        if self.wide:
            return GROUP_SIZES
        return (32, 64) if inputs % max(GROUP_SIZES) else (32, max(GROUP_SIZES))


WIDE = Scope()  # for any size


def around(bits: int) -> Scope:
    """Return what is worth trying where the bytes of so many bits are spread.

    On three small models the choice among these lost at most 4 % more than that among all.
    """
    return Scope(least_bits=max(2, bits - 1), wide=False)


def fitting(
    found: list[TensorFormat],
    inputs: int,
    greatest: float,
    options: ConvertOptions,
    scope: Scope = WIDE,
) -> list[TensorFormat]:
    """Return those formats that may hold a matrix.

    Args:
        found: formats.
        inputs: of the matrix.
        greatest: magnitude in it.
        options: whether other engines must keep the formats at their size.
        scope: what is tried at all.
    """
    fits = [
        form
        for form in dict.fromkeys(found)
        if form.bits >= scope.least_bits
        and fits_float16_scales(greatest, form.bits)
        and form.holds(inputs)
        and not (form.grouped and options.portable)
    ]
    if scope.wide:
        return fits
    beaten = [(8, size) for size in GROUP_SIZES]
    if any(form.table for form in fits):
        beaten.append((4, 32))
    return [form for form in fits if not (form.zeros and (form.bits, form.group_size) in beaten)]
