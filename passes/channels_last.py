"""Convolutions in channels-last memory, where the price says that it wins.

Libraries compute convolutions on the channels of one position side by side. From and to memory in which a channel's
positions are neighbours, they reorder the input before and the result after; between convolutions, where kernels write
whatever layout is asked for, channels-last memory costs nothing and saves both.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from rooffuse.cost_model import Device
from rooffuse.passes.graph import argument, aten, is_concrete, tensor_meta
from rooffuse.passes.layouts import NotRestorable, Rebuilt, Relayout
from rooffuse.passes.pipeline import Pass
from rooffuse.passes.rules_window import unrolled
from torch._guards import detect_fake_mode
from torch.fx import GraphModule, Node

log = logging.getLogger(__name__)

#: Which arguments of a call are taken in channels-last memory.
_TAKEN: Mapping[Any, tuple[int, ...]] = {aten.convolution.default: (0,), aten.convolution_backward.default: (0, 1)}
_FORMS = {4: torch.channels_last, 5: torch.channels_last_3d}
#: Types that libraries have blocked kernels for: oneDNN's on a CPU, of tensor cores on a GPU. cuDNN's kernels for
#: float32 read a channel's positions as they lie (https://docs.nvidia.com/deeplearning/performance/
#: dl-performance-convolutional, "Tensor Layouts": NHWC is what tensor cores take, NCHW is transposed to it and back).
_TYPES = {"cpu": frozenset({torch.float32, torch.bfloat16, torch.float16}),
          "gpu": frozenset({torch.bfloat16, torch.float16})}
#: How many times longer a kernel takes that reads along one dimension and writes along another. On a CPU: 4 to 12 GB/s
#: where equal layouts move at 18, 0.8 to 12 MB of fp32 and bf16, one thread with AVX-512. On a GPU tiles are turned in
#: shared memory, at nearly the bandwidth (https://developer.nvidia.com/blog/efficient-matrix-transpose-cuda-cc/).
TURNING = {"cpu": 3.0, "gpu": 1.2}
#: What a weight costs more in channels-last memory on a CPU, in times that it takes to read and write it: in half
#: types, and in float32. Measured on two cores, 512 → 512 channels of 3 × 3 on 7 × 7, forward and both gradients: 1.4
#: to 2.6 in bf16, 1.4 to 13 in fp32. Of 1 × 1, with 0.5M to 2M weights on 3 × 3 to 12 × 12: 1.1 to 2.1 and 2.2 to 5.4.
WEIGHT = (2.0, 4.0)
#: How many times longer oneDNN takes to reorder the result of a transposed convolution than to read and write it.
#: Measured on two cores, ten shapes from 32 × 32 to 262 × 262: 0.7 to 6 ns an element in fp32, 0.4 to 4 ns in bf16;
#: 64 → 128 channels of 3 × 3 with stride 2 on 2 × 64 × 64 take 29.6 ms, and 4.2 ms from and to channels-last memory.
UPWARDS = 5.0
#: Bytes that memory hands over at a time; of shorter runs of neighbours the rest of them is moved in vain.
LINE = {"cpu": 64, "gpu": 32}
#: Most channels of an image that oneDNN reads as they lie (the ``nchw`` variants of its first-layer kernels).
FEW_CHANNELS = 3


@dataclass(frozen=True)
class Layout:
    """Strides that aren't the traced ones: ``inputs`` (by name; contiguous ones) come with those of these fake values,
    and the results at positions ``free`` may leave with any."""

    inputs: Mapping[str, torch.Tensor] = field(default_factory=dict)
    free: frozenset[int] = frozenset()


def channels_last_pass(device: Device, lowers: Callable[[Node], bool], layout: Layout | None = None) -> Pass:
    """The pass for a device, and a code generator that takes the nodes for which ``lowers`` holds."""
    run = functools.partial(channels_last, device=device, lowers=lowers, layout=layout or Layout())
    return Pass("channels_last", run, channels_last.__doc__ or "")


def channels_last(gm: GraphModule, device: Device, lowers: Callable[[Node], bool], layout: Layout) -> GraphModule:
    """Give convolutions their operands in channels-last memory, by clones, and what lies between them, too.

    A connected set of convolutions is changed if it then saves more seconds than the copies at its borders take (see
    `saved_seconds`, `copy_seconds`, `scattered_seconds`). Requires: ``meta["val"]`` fake tensors with concrete sizes
    (others are left alone); comes before compound operators are decomposed, since a depthwise convolution is unrolled
    in one layout and left to the library in the other. Ensures: equal values; results have the strides that they were
    traced with, but for those that may have any; so have the operands of every operator that may mean something else
    in other strides.
    """
    mode = detect_fake_mode([n.meta.get("val") for n in gm.graph.nodes])
    if mode is None or not all(_is_concrete(n) for n in gm.graph.nodes):
        return gm
    inputs = {n: layout.inputs[n.name] for n in gm.graph.find_nodes(op="placeholder") if n.name in layout.inputs}
    relayout = Relayout(gm.graph, mode, lowers, inputs, layout.free)
    candidates = {n: saved_seconds(n, device) for n in gm.graph.nodes if _is_candidate(n, relayout, device)}
    if not candidates and not inputs:
        return gm
    chosen: Mapping[Node, float] = {}
    try:
        chosen, rebuilt = _chosen(relayout, candidates, device)
    except NotRestorable as error:
        log.debug("channels_last: nothing is changed: %s", error)
        rebuilt = Rebuilt(relayout, {}, dict.fromkeys(inputs, torch.contiguous_format))
    log.debug("channels_last: %d convolutions, %d copies", len(chosen), len(rebuilt.copies))
    if not chosen and not inputs:
        return gm
    rebuilt.graph._codegen = gm.graph._codegen
    gm.graph = rebuilt.graph
    return gm


def _is_concrete(node: Node) -> bool:
    value = tensor_meta(node)
    return not isinstance(node.meta.get("val"), torch.SymInt) and (
        value is None or is_concrete((*value.shape, *value.stride(), value.storage_offset())))


def _is_candidate(node: Node, relayout: Relayout, device: Device) -> bool:
    if node.target not in _TAKEN or relayout.roots[node] in relayout.written:
        return False
    image, weight = argument(node, "input"), argument(node, "weight")
    value = tensor_meta(image)
    if value is None or value.dim() not in _FORMS or value.numel() == 0 or value.dtype not in _TYPES[device.kind]:
        return False
    if tensor_meta(weight) is None or weight.meta["val"].dim() != value.dim():
        return False
    if device.kind == "gpu" and argument(node, "groups") != 1:
        return False  # few channels meet: kernels of their own, which read either layout
    if device.kind == "cpu" and not _is_blocked(node):
        return False
    operands = [node.args[k] for k in _TAKEN[node.target]]
    return not any(relayout.roots[n] in relayout.written for n in operands) and not all(
        n.meta["val"].is_contiguous(memory_format=_FORMS[value.dim()]) for n in operands)


def _is_blocked(node: Node) -> bool:
    """Whether torch gives a convolution on the CPU to oneDNN, by shape, type and threads; its own kernels reorder
    nothing."""
    names = ("input", "weight", "stride", "padding", "dilation", "transposed", "output_padding", "groups")
    image, weight, *rest = torch.fx.map_arg([argument(node, n) for n in names], lambda n: n.meta["val"])
    with torch.no_grad():
        backend = torch._C._select_conv_backend(image, weight, None, *rest, None)
    # Python has no name for oneDNN's transposed convolutions, which come next to the others.
    return int(backend) in range(int(torch._C._ConvBackend.Mkldnn), int(torch._C._ConvBackend.Mkldnn) + 3)


# -- prices ---------------------------------------------------------------------------------------------------------


def saved_seconds(node: Node, device: Device) -> float:
    """Seconds by which a convolution is faster in channels-last memory; negative where its weight outweighs the rest.

    One that would be unrolled into the kernels around it becomes a library call: its input and its result are written
    and read once more. Else every activation that the library would reorder is read and written once less, ``2 · bytes
    / bandwidth``, and takes one launch less: oneDNN's blocked kernels and cuDNN's tensor-core kernels alike have
    reorders around them (https://uxlfoundation.github.io/oneDNN/dev_guide_convolution.html, "Data Representation"). A
    backward reorders for each of the gradients of input and weight. The weight, or its gradient, costs ``WEIGHT · 2 ·
    bytes / bandwidth`` on a CPU: torch copies it into the layout of the input before oneDNN reorders it
    (aten/src/ATen/native/mkldnn/Conv.cpp). The result of a transposed convolution is reordered at another rate there,
    ``UPWARDS · 2 · bytes / bandwidth``.
    Measured on a CPU with AVX-512, one thread of 15 GB/s, fp32: 64 → 64 channels of 3 × 3 on 4 × 56 × 56 8.5 ms and
    5.8 ms, 512 → 512 on 4 × 7 × 7 7.1 ms and 8.6 ms, of which 1.2 ms copy the weight.
    """
    image, weight = argument(node, "input").meta["val"], argument(node, "weight").meta["val"]
    small = device.kind == "cpu" and image.shape[1] <= FEW_CHANNELS
    form, launch = _FORMS[image.dim()], device.launch_s
    if node.target is aten.convolution.default and unrolled(
            image, weight, argument(node, "transposed"), argument(node, "groups")):
        return -2 * (_nbytes(image) + _nbytes(node.meta["val"])) / device.bandwidth - launch
    if node.target is aten.convolution.default:
        moved = [node.meta["val"]] if small else [image, node.meta["val"]]
        weights = 1
        upwards = device.kind == "cpu" and argument(node, "transposed")
    else:
        gradient, (of_image, of_weight, _) = argument(node, "grad_output").meta["val"], argument(node, "output_mask")
        moved = [*([gradient, image] if of_image else []), *([gradient, image] if of_weight else [])]
        weights, upwards = int(of_image) + int(of_weight), False
    seconds = sum(2 * _nbytes(v) / device.bandwidth + launch for v in moved)
    if upwards:
        seconds += 2 * (UPWARDS - 1) * _nbytes(node.meta["val"]) / device.bandwidth
    pointwise = prod(weight.shape[2:]) == 1  # in either layout, yet the library reorders it for this one
    if device.kind == "cpu" and (pointwise or not weight.is_contiguous(memory_format=form)):
        cost = WEIGHT[weight.dtype.itemsize > 2] * 2 * _nbytes(weight) / device.bandwidth
        seconds -= weights * (cost + launch)
    return seconds


def copy_seconds(rebuilt: Rebuilt, copy: Node, device: Device) -> float:
    """Seconds that a clone adds. One of its own reads and writes, ``TURNING · 2 · bytes / bandwidth`` and a launch. A
    kernel that makes the clone's source stores it in place of that, or beside it if somebody else needs the source."""
    source = copy.all_input_nodes[0]
    relayout, size = rebuilt.relayout, _nbytes(copy.meta["val"]) / device.bandwidth
    if relayout.roots[rebuilt.copies[copy]] not in relayout.generated:
        return 2 * TURNING[device.kind] * size + device.launch_s
    return 2 * (TURNING[device.kind] - 1) * size + (size if len(source.users) > 1 else 0.0)


def scattered_seconds(node: Node, device: Device) -> float:
    """Seconds that a group norm takes longer in channels-last memory: its groups are runs of ``channels / groups``
    neighbours there, and the lines of ``LINE`` bytes around them are moved for each group. Measured on a CPU, 128
    channels in 32 groups on 32 × 32 in fp32, with SiLU: 84 µs and 253 µs."""
    if node.target is not aten.native_group_norm.default:
        return 0.0
    image = node.args[0].meta["val"]
    run = image.shape[1] // argument(node, "group") * image.dtype.itemsize
    return max(LINE[device.kind] / run - 1, 0) * 2 * _nbytes(image) / device.bandwidth


def _nbytes(value: torch.Tensor) -> int:
    return prod(value.shape) * value.dtype.itemsize


# -- the choice -----------------------------------------------------------------------------------------------------


def _chosen(relayout: Relayout, chosen: Mapping[Node, float], device: Device) -> tuple[Mapping[Node, float], Rebuilt]:
    """Those of the candidates that win, with what each saves, and the graph with them in channels-last memory.

    Where inputs come in that layout, leaving it costs copies, too: then all candidates are compared with the winners.
    """
    every = rebuilt = _settled(relayout, chosen)
    candidates = chosen
    while True:
        losing = _losing(rebuilt, chosen, device)
        if not losing:
            break
        chosen = {n: s for n, s in chosen.items() if n not in losing}
        rebuilt = _settled(relayout, chosen)
    if relayout.inputs and _added(every, candidates, device) < _added(rebuilt, chosen, device):
        return candidates, every
    return chosen, rebuilt


def _added(rebuilt: Rebuilt, chosen: Mapping[Node, float], device: Device) -> float:
    """Seconds that the copies of a graph take, less what its convolutions save."""
    return sum(copy_seconds(rebuilt, c, device) for c in rebuilt.copies) - sum(chosen.values())


def _settled(relayout: Relayout, chosen: Mapping[Node, float]) -> Rebuilt:
    """The graph with ``chosen`` convolutions in channels-last memory. What has to be copied for them is copied where
    it is made, so that other readers are in that layout as well."""
    early: dict[Node, torch.memory_format] = {}
    while True:
        wanted = {n: dict.fromkeys(_TAKEN[n.target], _form(n)) for n in chosen}
        rebuilt = Rebuilt(relayout, wanted, early)
        found = {n: f for n, f in rebuilt.formatted.items() if n not in early}
        if not found:
            return rebuilt
        early |= found


def _form(node: Node) -> torch.memory_format:
    return _FORMS[argument(node, "input").meta["val"].dim()]


def _losing(rebuilt: Rebuilt, chosen: Mapping[Node, float], device: Device) -> frozenset[Node]:
    """Those of ``chosen`` whose connected set, by values in other strides than traced, saves no more than it costs:
    first those that lose by themselves, and if there are none, the whole set."""
    leader: dict[Node, Node] = {}

    def find(node: Node) -> Node:
        while leader.setdefault(node, node) is not node:
            leader[node] = node = leader[leader[node]]
        return node

    members = [n for n in rebuilt.of if n in chosen or rebuilt.changed(n)]
    for node in members:
        for source in node.all_input_nodes:
            if source in chosen or rebuilt.changed(source):
                leader[find(source)] = find(node)
    gain: dict[Node, float] = {}
    for node, seconds in chosen.items():
        gain[find(node)] = gain.get(find(node), 0.0) + (seconds if _follows(rebuilt, node) else float("-inf"))
    for node in members:
        gain[find(node)] = gain.get(find(node), 0.0) - scattered_seconds(node, device)
    for copy, origin in rebuilt.copies.items():
        gain[find(origin)] = gain.get(find(origin), 0.0) - copy_seconds(rebuilt, copy, device)
    losing = [n for n in chosen if gain[find(n)] <= 0]
    alone = [n for n in losing if chosen[n] <= 0 or not _follows(rebuilt, n)]
    sets = {find(n) for n in alone}
    return frozenset(n for n in losing if n in alone or find(n) not in sets)


def _follows(rebuilt: Rebuilt, node: Node) -> bool:
    """Whether the library leaves what it computes for ``node`` in channels-last memory."""
    made = rebuilt.of[node].meta["val"]
    results: Collection[Any] = made[:1] if isinstance(made, (tuple, list)) else (made,)
    return all(r is None or r.is_contiguous(memory_format=_form(node)) for r in results)
