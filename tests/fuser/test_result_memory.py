"""Memory of released results is written again, and nobody's who still refers to it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import rooffuse
import torch
from rooffuse.result_memory import LEAST_BYTES, RESULTS, ResultMemory
from torch import Tensor

#: A megabyte of float32.
SIZE = (512, 513)


@pytest.fixture(autouse=True)
def empty() -> Iterator[None]:
    rooffuse.empty_cache()
    yield
    rooffuse.empty_cache()


def doubled(**options: Any) -> Callable[[Tensor], Tensor]:
    return torch.compile(lambda x: x * 2 + 1, backend="rooffuse", options=options)


def test_a_released_result_is_written_again() -> None:
    run, x = doubled(), torch.randn(SIZE)
    places = set()
    for _ in range(6):
        result = run(x)
        places.add(result.data_ptr())
        assert torch.equal(result, x * 2 + 1)
    assert len(places) == 2  # a result is released when the next one is there already
    assert RESULTS.bytes == 2 * 4 * SIZE[0] * SIZE[1]


@pytest.mark.parametrize(
    "hold",
    [
        lambda t: t,
        lambda t: t[3:, 5],
        lambda t: t.detach().numpy(),
        lambda t: t.untyped_storage(),
        lambda t: memoryview(t.numpy()),
        lambda t: torch.utils.dlpack.to_dlpack(t),
        lambda t: (t * torch.ones(1, requires_grad=True)).sum(),  # saved for the gradient
    ],
)
def test_what_anybody_refers_to_is_left_alone(hold: Callable[[Tensor], Any]) -> None:
    run, x = doubled(), torch.randn(SIZE)
    first = run(x)
    place, held = first.data_ptr(), hold(first)
    del first
    others = [run(x) for _ in range(3)]
    assert place not in [t.data_ptr() for t in others]
    del held, others
    gc.collect()
    assert place in [t.data_ptr() for t in [run(x) for _ in range(4)]]


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.share_memory_(),
        lambda t: t.untyped_storage().resize_(0),
        lambda t: t.untyped_storage().resize_(LEAST_BYTES // 2),
    ],
)
def test_memory_that_was_exchanged_is_not_used(change: Callable[[Tensor], Any]) -> None:
    run, x = doubled(), torch.randn(SIZE)
    first = run(x)
    change(first)
    place = first.data_ptr()
    del first
    second, third = run(x), run(x)
    assert place not in (second.data_ptr(), third.data_ptr())
    assert torch.equal(second, x * 2 + 1)
    assert torch.equal(third, second)


def test_sizes_that_were_not_used_for_longest_go_first() -> None:
    memory = ResultMemory(3 * LEAST_BYTES)

    def take(count: int) -> Tensor:
        return memory.take((count * LEAST_BYTES,), (1,), torch.uint8, count * LEAST_BYTES)

    take(1)
    take(2)
    assert memory.bytes == 3 * LEAST_BYTES
    small = take(1)
    assert memory.bytes == 3 * LEAST_BYTES
    take(2)
    take(2)
    assert memory.bytes == 3 * LEAST_BYTES
    big = take(3)
    assert memory.bytes == 3 * LEAST_BYTES
    assert len({t.data_ptr() for t in (small, big)}) == 2
    take(4)  # more than may be kept
    assert memory.bytes == 0


def test_what_is_held_for_long_is_forgotten_and_no_block_allocated_in_its_place() -> None:
    memory = ResultMemory(1 << 30)

    def take() -> Tensor:
        return memory.take((LEAST_BYTES,), (1,), torch.uint8, LEAST_BYTES)

    held = [take() for _ in range(8)]
    places = set()
    for _ in range(40):
        places.add(take().data_ptr())
    assert len(places) == 1
    assert memory.bytes == LEAST_BYTES  # those that are held aren't looked at for ever
    assert not places & {t.data_ptr() for t in held}


def test_layouts_and_types_of_as_many_bytes_share_blocks() -> None:
    memory = ResultMemory(1 << 30)
    wide = memory.take((512, 512), (1, 512), torch.float32, LEAST_BYTES)
    place = wide.data_ptr()
    del wide
    narrow = memory.take((1024, 512), (512, 1), torch.bfloat16, LEAST_BYTES)
    assert (narrow.data_ptr(), narrow.stride(), narrow.dtype) == (place, (512, 1), torch.bfloat16)
    assert not narrow._is_view()
    assert narrow._base is None


def test_threads_never_share_a_result() -> None:
    run = doubled()
    run(torch.zeros(SIZE))
    wrong: list[float] = []

    def work(value: float) -> None:
        x = torch.full(SIZE, value)
        for _ in range(30):
            result = run(x)
            if not bool((result == value * 2 + 1).all()):
                wrong.append(value)

    threads = [threading.Thread(target=work, args=(float(k),)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_gradients_of_steps_are_apart() -> None:
    layer = torch.nn.Linear(512, 600)
    step = torch.compile(lambda x: layer(x).square().mean(), backend="rooffuse")
    x, first = torch.randn(8, 512), None
    for _ in range(3):
        step(x).backward()
        assert layer.weight.grad is not None
        assert first is None or torch.equal(layer.weight.grad, first)
        first, layer.weight.grad = layer.weight.grad.clone(), None
    step(x).backward()
    step(x).backward()  # adds to the first one's
    torch.testing.assert_close(layer.weight.grad, 2 * first)


def test_inference_mode_and_others_take_turns() -> None:
    run, x = doubled(), torch.randn(SIZE)
    for _ in range(3):
        with torch.inference_mode():
            assert run(x).is_inference()
        result = run(x)
        assert not result.is_inference()
        result.add_(1)
        torch.testing.assert_close(result, x * 2 + 2)


def test_the_option_leaves_it_to_the_system() -> None:
    run, x = doubled(keep_memory=False), torch.randn(SIZE)
    assert torch.equal(run(x), x * 2 + 1)
    assert RESULTS.bytes == 0


def test_small_results_are_not_kept() -> None:
    run = doubled()
    run(torch.randn(100, 100))
    assert RESULTS.bytes == 0


def test_memory_of_inference_is_good_for_training() -> None:
    """A tensor that was made in inference mode can't be saved for a gradient, and its mode is that of who asks."""
    memory = ResultMemory(1 << 24)
    ask = SIZE, (SIZE[1], 1), torch.float32, 4 * SIZE[0] * SIZE[1]
    with torch.inference_mode():
        first = memory.take(*ask)
        assert first.is_inference()
        place = first.data_ptr()
        del first
    second = memory.take(*ask)
    assert second.data_ptr() == place and not second.is_inference()
    weight = torch.ones(SIZE[1], requires_grad=True)
    (weight * second.fill_(2)).sum().backward()
    assert torch.equal(weight.grad, torch.full((SIZE[1],), 2.0 * SIZE[0]))
    assert second._version == 1 and not second._is_view()
    del second
    with torch.inference_mode():
        third = memory.take(*ask)
        assert third.data_ptr() == place and third.is_inference()
