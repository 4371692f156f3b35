from __future__ import annotations

import pytest
import torch
from rooffuse.options import OptionError, Options, make_options


def test_defaults_leave_the_choice_to_the_price():
    assert make_options(environ={}) == Options(cuda_graphs="auto", strict=False)


def test_unknown_option_lists_the_known_ones_and_the_closest():
    with pytest.raises(OptionError, match="no option 'cuda_graph'.*did you mean 'cuda_graphs'.*strict"):
        make_options(options={"cuda_graph": True}, environ={})


def test_unknown_mode_lists_the_known_ones():
    with pytest.raises(OptionError, match="no mode 'fastest'.*reduce-overhead"):
        make_options(mode="fastest", environ={})


def test_reduce_overhead_means_cuda_graphs():
    assert make_options(mode="reduce-overhead", environ={}).cuda_graphs is True
    assert make_options(mode="max-autotune-no-cudagraphs", environ={}).cuda_graphs is False


def test_max_autotune_means_a_search_unless_an_option_says_otherwise():
    assert make_options(environ={}).autotune is False
    for mode in ("max-autotune", "max-autotune-no-cudagraphs"):
        assert make_options(mode=mode, environ={"ROOFFUSE_AUTOTUNE": "0"}).autotune is True
        assert make_options(mode=mode, options={"autotune": False}, environ={}).autotune is False
    assert make_options(mode="reduce-overhead", environ={}).autotune is False
    assert make_options(environ={"ROOFFUSE_AUTOTUNE": "1"}).autotune is True


def test_environment_is_read_and_options_win_over_it():
    environ = {"ROOFFUSE_STRICT": "1", "ROOFFUSE_CUDA_GRAPHS": "off", "ROOFFUSE_DUMP": "/tmp/x"}
    from_environment = make_options(environ=environ)
    assert (from_environment.strict, from_environment.cuda_graphs, from_environment.dump) == (True, False, "/tmp/x")
    assert make_options(options={"strict": False}, environ=environ).strict is False


@pytest.mark.parametrize(("name", "value"), [("strict", "maybe"), ("cuda_graphs", 7), ("dump", 3)])
def test_wrong_value_names_the_option_and_what_it_takes(name, value):
    with pytest.raises(OptionError, match=f"{name} takes"):
        make_options(options={name: value}, environ={})


def test_a_wrong_environment_value_names_the_variable():
    with pytest.raises(OptionError, match="ROOFFUSE_STRICT"):
        make_options(environ={"ROOFFUSE_STRICT": "sometimes"})


def test_torch_compile_reports_an_unknown_option():
    with pytest.raises(Exception, match="no option 'nonsense'"):
        torch.compile(lambda x: x + 1, backend="rooffuse", options={"nonsense": 1})(torch.ones(3))
