"""Matrices of experts in modules of `transformers`, which has them in other places than files do.

A release may hold each expert's matrix as a parameter or those of all experts as one, by output or
by input, whatever the checkpoint has. `Stack.parts` finds them under either name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from edgetok.converter.read.canonical_weights import CanonicalWeights
from edgetok.errors import UnsupportedError
from edgetok.models.family import Stack, TensorSource


def read_stacked(source: TensorSource, parameters: Mapping[str, Tensor], dims: int) -> Tensor:
    """Return a copy of a canonical tensor that is made of the experts' parameters.

    Args:
        source: has a stack.
        parameters: by their names in a checkpoint of the same release.
        dims: dims of the canonical tensor: 2, or 1 for biases.
    """
    views = (_view(parameters[part.name], part) for part in source.parts(parameters))
    return torch.cat([view.flatten() if dims == 1 else view for view in views])


def write_stacked(source: TensorSource, parameters: Mapping[str, Tensor], values: Tensor) -> None:
    """Write what `read_stacked` reads."""
    parts = source.parts(parameters)
    for part, rows in zip(parts, values.chunk(len(parts)), strict=True):
        view = _view(parameters[part.name], part)
        view.copy_(rows.reshape(view.shape))


def put_stacked(
    stack: Stack, values: Tensor, parameters: Mapping[str, Tensor], made: dict[str, Tensor]
) -> None:
    """Put a canonical tensor into new parameters, through which gradients pass back to it.

    One assignment is of all experts: behind one for each, autograd would copy all as often.

    Args:
        stack: says where it is.
        values: [experts * N, K], or [experts * N] of biases.
        parameters: by their names in a checkpoint of the same release.
        made: the new ones by these names; one that is there already holds another matrix, too.
    """
    each = values.reshape(stack.count, stack.rows, -1)
    for name, every, first in stack.joined:
        if name in parameters:
            whole = _new(name, parameters, made).view(stack.count, every, -1)
            whole[:, first : first + stack.rows] = each
            return
    for name, inputs, first, step in stack.turned:
        if name in parameters:
            whole = _new(name, parameters, made).view(stack.count, inputs, -1)
            whole[:, :, first::step] = each.mT
            return
    for expert, own in enumerate(each.unbind()):
        name = stack.each.format(expert)
        made[name] = own.reshape(parameters[name].shape)


def _new(name: str, parameters: Mapping[str, Tensor], made: dict[str, Tensor]) -> Tensor:
    """Return a parameter that may be written to."""
    return made.setdefault(name, parameters[name].detach().clone())


def fill_missing(
    weights: CanonicalWeights,
    canonical: Iterable[str],
    parameters: Mapping[str, Tensor],
    missing: Iterable[str],
) -> None:
    """Give experts' parameters their values where the checkpoint has them in another place.

    Args:
        weights: weights of the checkpoint.
        canonical: names of the tensors to look at.
        parameters: all of them, by their names in a checkpoint of the same release; written to.
        missing: names of those that the checkpoint does not have.

    Raises:
        UnsupportedError: one of `missing` is not an expert's.
    """
    missing = set(missing)
    filled: set[str] = set()
    for name in canonical:
        source = weights.family.tensors[name]
        if source.stack is None:
            continue
        names = {part.name for part in source.parts(parameters)}
        if names & missing and names <= parameters.keys():
            write_stacked(source, parameters, torch.from_numpy(weights.tensor(name)))
            filled |= names
    for name in sorted(missing - filled):
        raise UnsupportedError(
            f"the installed transformers has a parameter {name!r}, which the checkpoint has under "
            "another name; use --method rtn"
        )


def _view(parameter: Tensor, part: TensorSource) -> Tensor:
    """The part of a parameter, as rows of a matrix; it shares its memory."""
    values = parameter.flatten(0, -2) if part.flat else parameter
    if part.rows is not None:
        values = values[slice(*part.rows)]
    if part.columns is not None:
        first, step = part.columns
        values = values[:, first::step].T
    return values
