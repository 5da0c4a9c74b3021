"""Checks of a spec's fields: each refuses a value by the field's name."""

from __future__ import annotations

from edgetok.errors import ArtefactError


def check_integer(where: str, name: str, value: object, low: int, high: int) -> None:
    """Refuse what is not an integer in low..high.

    Raises:
        ArtefactError: it names the field, after `where`.
    """
    if type(value) is not int or not low <= value <= high:
        raise ArtefactError(
            f"spec: {where}{name} is {shown(value)}, expected an integer in {low}..{high}"
        )


def check_number(where: str, name: str, value: object, low: float, high: float) -> None:
    """Refuse what is not a number in low..high. Raises as `check_integer` does."""
    if type(value) not in (int, float) or not low <= value <= high:  # type: ignore[operator]
        raise ArtefactError(
            f"spec: {where}{name} is {shown(value)}, expected a number in {low:g}..{high:g}"
        )


def check_choice(where: str, name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuse what is none of `allowed`, the type included. Raises as `check_integer` does."""
    if not any(type(value) is type(item) and value == item for item in allowed):
        names = ", ".join(map(str, allowed))
        raise ArtefactError(f"spec: {where}{name} is {shown(value)}, expected one of {names}")


def shown(value: object) -> str:
    """Return a value as a message shows it: short, whatever it is."""
    if type(value) is int and value.bit_length() > 256:
        return f"an integer of {value.bit_length()} bits"
    if isinstance(value, str | int | float | None):
        return f"{value!a:.80}"
    return f"of type {type(value).__name__}"
