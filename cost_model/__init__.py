"""Prices operators in FLOPs and bytes, and turns prices into seconds on a device.

>>> import torch
>>> x = torch.empty(4096, 4096, dtype=torch.float16, device="meta")
>>> p = price(torch.ops.aten.mm.default, (x, x.clone()), {}, x @ x)
>>> p.cost.flops, p.cost.bytes, p.kind
(137438953472, 100663296, 'matmul')
>>> estimate(p.cost, get_device("h100"), p.dtype, p.unit).bound
'compute'
"""

from .calibration import calibrate
from .cost import KINDS, Cost, Price
from .detect import UnknownDevice
from .device import PEAK_KEYS, Device, device_from_dict
from .devices import all_devices, device_names, get_device, local_device
from .formulas import FAMILIES
from .registry import OPS, OpRegistry, kind_of, price, register
from .roofline import Estimate, estimate, occupancy
from .spec import TensorSpec

__all__ = [
    "FAMILIES",
    "KINDS",
    "OPS",
    "PEAK_KEYS",
    "Cost",
    "Device",
    "Estimate",
    "OpRegistry",
    "Price",
    "TensorSpec",
    "UnknownDevice",
    "all_devices",
    "calibrate",
    "device_from_dict",
    "device_names",
    "estimate",
    "get_device",
    "kind_of",
    "local_device",
    "occupancy",
    "price",
    "register",
]
