"""Random programs compiled and compared with eager execution in all that a caller can notice.

    python -m tests.models.random_runs --seeds 0:500                 # C++ kernels
    python -m tests.models.random_runs --seeds 0:100 --triton        # Triton kernels in Triton's interpreter
    python -m tests.models.random_runs --seeds 17 --minimise         # the fewest lines that still go wrong

A failure is printed as a program that can be run.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import rooffuse.backend
import rooffuse.runtime
import torch
from rooffuse.cost_model import get_device
from rooffuse.targets import Target
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from .eager import STRICT, real_strides, sharing
from .poison import poisoned_memory
from .random_programs import random_program
from .random_rounds import EPS, Program, Rounds, agrees, deviation, made, names

#: How far a result may be from the exact one: this many times what eager execution or rounding alone comes to ...
FACTOR = 3.0
#: ... plus this many roundings of the largest value: a kernel adds up to a thousand numbers one after the other, and
#: where they are equal, each addition rounds to the same side.
ROUNDINGS = 32.0
#: The exact values are those of float64, so that float64 itself is judged by something coarser.
FINEST = 2.0**-44
INTERPRETED = Target("triton", get_device("h100"), torch.device("cpu"), interpreted=True)


@contextmanager
def on_target(target: Target | None) -> Iterator[None]:
    """Programs are compiled for ``target``, where it isn't this machine's CPU."""
    if target is None:
        yield
        return
    with mock.patch.object(rooffuse.backend, "local_target", lambda values: target):
        yield


@dataclass(frozen=True)
class Reference:
    """What comes out of the rounds: eager, exact and noisy values of outputs, inputs afterwards, and gradients."""

    outputs: list[list[Tensor]]
    inputs: list[list[Tensor]]
    gradients: list[list[Tensor | None]]


def gradients(outputs: list[Tensor], inputs: list[Tensor]) -> list[Tensor | None]:
    roots = [o for o in outputs if o.requires_grad]
    wanted = [i for i in inputs if i.requires_grad]
    if not roots or not wanted:
        return []
    tangents = [
        torch.randn(o.shape, generator=torch.Generator().manual_seed(k)).to(o.dtype) for k, o in enumerate(roots)
    ]
    return list(torch.autograd.grad(roots, wanted, tangents, allow_unused=True))


def leaves(program: Program) -> list[str]:
    """The inputs that get gradients: floats that share memory with no other."""
    if not dict(program.options).get("grad"):
        return []
    tensors = made(program)
    shared = sharing(tensors)
    return [n for (n, _), t, s in zip(program.inputs, tensors, shared) if t.is_floating_point() and len(s) == 1]


def reference(program: Program) -> Reference:
    inputs = dict(zip((n for n, _ in program.inputs), made(program)))
    rounds = Rounds(inputs, noisy=3, grad=leaves(program))
    for line in program.lines:
        rounds.run(line)
    outputs = [[space[n] for n in program.outputs] for space in rounds.spaces]
    after = [[space[n] for n in inputs] for space in rounds.spaces]
    return Reference(outputs, after, [gradients(o, i) for o, i in zip(outputs, after)])


def difference(ours: Tensor, values: list[Tensor]) -> str | None:
    """Why a tensor isn't eager's, judged against the exact one, or None."""
    eager, exact, *noisy = values
    if ours.dtype != eager.dtype or ours.shape != eager.shape:
        return f"{ours.dtype}{list(ours.shape)} instead of {eager.dtype}{list(eager.shape)}"
    if eager.numel() == 0:
        return None
    if not eager.is_floating_point():
        wrong = int((ours != eager).sum())
        return f"{wrong} of {eager.numel()} elements differ" if wrong else None
    if not agrees(values):
        return None
    allowed = FACTOR * deviation(exact, (eager, *noisy))
    allowed += ROUNDINGS * max(EPS[eager.dtype], FINEST) * exact.detach().abs().max().item()
    found = deviation(exact, [ours])
    if found <= allowed:
        return None
    return f"error {found:.3g}, eager's {deviation(exact, [eager]):.3g}, {allowed:.3g} allowed"


def compiled(program: Program, backend: str) -> Callable[..., Any]:
    space, chosen = names(), dict(program.options)
    exec(program.text, space)
    torch._dynamo.reset()
    options = {**STRICT, "eager_casts": chosen.get("eager_casts", False)} if backend == "rooffuse" else None
    return torch.compile(space["fn"], backend=backend, options=options, dynamic=chosen.get("dynamic"))


def differences(program: Program, target: Target | None = None) -> str | None:
    """What a caller would notice of a compiled program that eager execution doesn't do, or None.

    Also None where the framework's own tracing changes what the program does: then that is what we were given.
    """
    expected = reference(program)
    with on_target(target):
        found = _differences(program, expected, "rooffuse")
    return found if found is None or _differences(program, expected, "aot_eager") is None else None


def traced_strides(program: Program) -> dict[str, list[list[int]]]:
    """Strides of the program's outputs and inputs as the framework's tracing sees them: where they aren't eager's, the
    compiled graph keeps the traced ones."""
    space = names()
    exec(program.text, space)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            inputs = [mode.from_tensor(t) for t in made(program)]
            return {"output": [real_strides(t) for t in space["fn"](*inputs)], "input": [*map(real_strides, inputs)]}
    except DataDependentOutputException:
        return {}


def _differences(program: Program, expected: Reference, backend: str) -> str | None:
    floats, named = leaves(program), [n for n, _ in program.inputs]
    inputs = [t.requires_grad_() if n in floats else t for n, t in zip(named, made(program))]
    with warnings.catch_warnings(), poisoned_memory():
        warnings.simplefilter("ignore")
        try:
            outputs = list(compiled(program, backend)(*inputs))
            found = gradients(outputs, inputs)
        except Exception as error:
            return "crash: " + last_words(error)
    for what, ours, theirs in (("output", outputs, expected.outputs), ("input", inputs, expected.inputs)):
        for k, (mine, values) in enumerate(zip(ours, zip(*theirs), strict=True)):
            name = program.outputs[k] if what == "output" else named[k]
            if text := difference(mine, list(values)):
                return f"{what} {name}: {text}"
            strides, wanted = real_strides(mine), real_strides(values[0])
            if strides != wanted and strides not in traced_strides(program).get(what, [])[k : k + 1]:
                return f"{what} {name}: strides {strides} instead of {wanted}"
    if sharing((outputs, inputs)) != sharing((expected.outputs[0], expected.inputs[0])):
        return "aliases: other tensors share memory"
    for name, gradient, values in zip(floats, found, zip(*expected.gradients)):
        if (gradient is None) != (values[0] is None):
            return f"gradient of {name}: {'none' if gradient is None else 'one where eager has none'}"
        if gradient is not None and (text := difference(gradient, list(values))):
            return f"gradient of {name}: {text}"
    return None


def last_words(error: BaseException) -> str:
    """The error, and where in this project it arose."""
    text = " ".join(str(error).split())[:600]
    chain, frames = error, list(traceback.extract_tb(error.__traceback__))
    while chain.__cause__ is not None:
        chain = chain.__cause__
        frames += traceback.extract_tb(chain.__traceback__)
    ours = [f for f in frames if any(f"/{room}/" in f.filename for room in ("codegen", "fuser", "passes"))]
    place = f" at {ours[-1].filename.rsplit('/', 1)[-1]}:{ours[-1].lineno}" if ours else ""
    return f"{type(error).__name__}{place}: {text}"


def with_options(program: Program) -> Program:
    """A share of the programs has gradients, rounds as eager does, or has symbolic sizes; by the seed."""
    draw = random.Random(program.seed + 1)
    shares = {"grad": 0.35, "eager_casts": 0.15, "dynamic": 0.05}
    chosen = replace(program, options=tuple((name, True) for name, share in shares.items() if draw.random() < share))
    if dict(chosen.options).get("grad"):
        try:
            reference(chosen)
        except RuntimeError:  # a leaf is written to, or what a gradient needs
            chosen = replace(chosen, options=tuple((k, v) for k, v in chosen.options if k != "grad"))
    return chosen


def program_of(seed: int, triton: bool = False) -> Program:
    """Triton's interpreter is slow, cuts float32 to bfloat16 in place of rounding, and has no atomic bfloat16."""
    return with_options(random_program(seed, (6, 18), 600, ("f64", "f32")) if triton else random_program(seed))


def needed(program: Program) -> Program:
    """Without lines and inputs that nothing reads. Writes stay where what they write to does."""
    read, kept = set(program.outputs), []
    for line in reversed(program.lines):
        words = set(re.findall(r"\b[av]\d+\b", line.text))
        if line.result in read or (line.result is None and words & read):
            kept.append(line)
            read |= words
    views = {n for _, text in program.inputs for n in re.findall(r"\ba\d+\b", text)}
    inputs = tuple(i for i in program.inputs if i[0] in read | views)
    return replace(program, lines=tuple(reversed(kept)), inputs=inputs)


def smaller(program: Program) -> Iterator[Program]:
    """Programs with something less: but one output, a line and what is only needed for it, an option."""
    if len(program.outputs) > 1:
        yield from (needed(replace(program, outputs=(name,))) for name in program.outputs)
        yield from (replace(program, outputs=tuple(o for o in program.outputs if o != n)) for n in program.outputs)
    yield from (replace(program, options=tuple(o for o in program.options if o != p)) for p in program.options)
    if len(needed(program).lines) < len(program.lines):
        yield needed(program)
    for k in reversed(range(len(program.lines))):
        line, rest = program.lines[k], program.lines[k + 1 :]
        if line.result is None:
            yield replace(program, lines=program.lines[:k] + rest)
            continue
        for name in re.findall(r"\b[av]\d+\b", line.text.split("=", 1)[1]):  # what it is made of in its place
            renamed = tuple(replace(r, text=re.sub(rf"\b{line.result}\b", name, r.text)) for r in rest)
            outputs = tuple(name if o == line.result else o for o in program.outputs)
            yield needed(replace(program, lines=program.lines[:k] + renamed, outputs=outputs))


def minimised(program: Program, target: Target | None = None, tries: int = 80) -> Program:
    """The program without what isn't needed for a failure of the same kind."""

    def kind(candidate: Program) -> str | None:
        text = differences(candidate, target)
        return text and text.split()[0] + text.split(" at ")[-1].split()[0] * text.startswith("crash")

    wanted, shrunk = kind(program), True
    while shrunk and tries > 0:
        shrunk = False
        for candidate in smaller(program):
            try:
                shrunk = kind(candidate) == wanted
            except Exception:  # something that was left out is needed
                continue
            if shrunk:
                program = candidate
                break
            tries -= 1
    return program


def reproducer(program: Program, target: Target | None) -> str:
    """A file that shows the difference: run it from the repository's root."""
    lines = [[line.text, line.result, line.eps] for line in program.lines]
    return f"""# seed {program.seed}: {differences(program, target)}
from tests.models.random_rounds import Line, Program
from tests.models.random_runs import INTERPRETED, differences

TEXT = '''
{program.text}'''
program = Program({program.seed}, {program.inputs},
    tuple(Line(*line) for line in {lines}),
    {program.outputs}, {program.options})
print(differences(program, {"None" if target is None else "INTERPRETED"}))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0:100")
    parser.add_argument("--triton", action="store_true")
    parser.add_argument("--minimise", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.disable(logging.ERROR)
    torch.set_num_threads(arguments.threads)
    first, _, last = arguments.seeds.partition(":")
    target, failures, count = INTERPRETED if arguments.triton else None, 0, 0
    for seed in range(int(first), int(last or int(first) + 1)):
        program = program_of(seed, arguments.triton)
        count += 1
        text = differences(program, target)
        if text is None:
            continue
        failures += 1
        print(f"== seed {seed}: {text}", flush=True)
        if arguments.minimise:
            program = minimised(program, target)
        print(reproducer(program, target), flush=True)
    print(f"{count} programs, {failures} failures")
    return min(failures, 100)


if __name__ == "__main__":
    sys.exit(main())
