from __future__ import annotations

import gc

import pytest
import torch
from rooffuse.collecting import no_collections


@pytest.fixture
def _enabled():
    assert gc.isenabled()
    yield
    gc.enable()


@pytest.mark.usefixtures("_enabled")
def test_nested_ones_end_with_the_outermost_whatever_is_raised():
    with pytest.raises(KeyError), no_collections():
        with no_collections():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise KeyError
    assert gc.isenabled()


@pytest.mark.usefixtures("_enabled")
def test_who_has_switched_it_off_keeps_it_off():
    gc.disable()
    with no_collections():
        pass
    assert not gc.isenabled()


@pytest.mark.usefixtures("_enabled")
def test_compiling_collects_nothing_and_afterwards_it_is_on_again():
    seen: list[bool] = []

    def twice(x: torch.Tensor) -> torch.Tensor:
        return x + x

    def noted(gm: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        from rooffuse.backend import compile_ahead

        def compiler(kind: str):
            def compile_one(graph: torch.fx.GraphModule, _: object):
                seen.append(gc.isenabled())
                return graph
            return compile_one

        return compile_ahead(gm, inputs, compiler)

    x = torch.randn(4)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(twice, backend=noted)(x), 2 * x)
    assert seen == [False]
    assert gc.isenabled()
