"""Running extrema: the values alone of ``cummax`` and ``cummin``, as operators with one result.

The library's operators also have positions, which few programs use, and which follow from the values: the last place
so far at which an element was the extreme so far.
"""

from __future__ import annotations

import torch
from torch import Tensor

_library = torch.library.Library("rooffuse", "FRAGMENT")


def _fake(x: Tensor, dim: int) -> Tensor:
    return torch.empty_like(x)


for _name, _whole in (("running_max", torch.cummax), ("running_min", torch.cummin)):
    _library.define(f"{_name}(Tensor x, int dim) -> Tensor")
    _library.impl(_name, lambda x, dim, whole=_whole: whole(x, dim).values, "CompositeExplicitAutograd")
    torch.library.register_fake(f"rooffuse::{_name}", _fake, lib=_library)

#: ``running_max(x, dim)``: the largest element up to each along ``dim``, NaN from the first NaN on.
running_max = torch.ops.rooffuse.running_max.default
#: ``running_min(x, dim)``: the smallest.
running_min = torch.ops.rooffuse.running_min.default
