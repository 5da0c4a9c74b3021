"""Model families as data, without arithmetic on weights."""

from edgetok.models.family import Family, TensorSource
from edgetok.models.registry import read_family
from edgetok.models.rope import inv_freq
from edgetok.models.spec import DecoderSpec, LayerSpec, RopeSpec
from edgetok.models.tensors import tensor_shapes

__all__ = [
    "DecoderSpec",
    "Family",
    "LayerSpec",
    "RopeSpec",
    "TensorSource",
    "inv_freq",
    "read_family",
    "tensor_shapes",
]
