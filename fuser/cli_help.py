"""Help texts of the command line."""
from __future__ import annotations

from .preset_table import PRESETS

EXAMPLES = """\
examples:
  rooffuse report examples/llama.py:decode_step --device h100
  rooffuse report examples/norms.py:add_rms_norm --source
  rooffuse plan-decode llama-3.1-8b --device h100,h200 --batch 1..256 --context 4096
  rooffuse calibrate
  rooffuse profile examples/norms.py:add_rms_norm
  rooffuse devices
"""

PROFILE = """\
Compile a function for this machine's CPU or GPU, run its kernels one by one, and print for each the predicted and the
measured time, what bandwidth and rate it reached, and the microseconds lost above the roof. TARGET is as for
`rooffuse report`; inputs and weights are made up in the traced shapes. Calibrate first: predictions use the rates
measured then.
A CPU's kernels are under a clock; those of a GPU are timed by torch.profiler.
"""

PROFILE_EXAMPLES = """\
examples:
  rooffuse profile norms.py:softmax
  rooffuse profile examples/llama.py:prefill --sort lost --top 10
  rooffuse profile examples/llama.py:decode_step --json times.json
  rooffuse profile gpt2 --phase decode --device cuda
"""

PLAN = f"""\
The floor of generating text with a model: bytes of weights and KV cache, time a token, tokens a second, where the batch
turns compute-bound, where the cache outweighs the weights, and the largest batch that fits. int4 has an fp16 scale for
each 64 weights. With --tp weights and key heads are split, and two all-reduces a layer are added; with --speculate a
round verifies K drafted tokens, which are taken as free, at one read of weights and cache.

A step of a mixture of experts reads the experts that its batch is expected to take, and layers with a sliding window
keep that many tokens.

PRESET_OR_CONFIG is the config.json of a causal language model, or one of
  {', '.join(PRESETS)}
"""

PLAN_EXAMPLES = """\
examples:
  rooffuse plan-decode llama-3.1-8b --device h100,h200,b200 --batch 1..256 --context 4096
  rooffuse plan-decode llama-3.1-70b --device h100 --tp 8 --formats bf16,int4/int8 --price 2.5
  rooffuse plan-decode qwen3-8b --batch 1 --speculate 5,0.78 --json -
"""

CALIBRATE = """\
Measure this machine's bandwidth from memory and from a CPU's caches, the matmul peak of each type and the fixed cost of
a kernel, in under a minute, and keep them in the user's cache folder. Every later plan, report and profile for this
machine uses them; a report's first line says which rates it used.
"""

REPORT = f"""\
What rooffuse would do with a function on a device: each node's bytes, FLOPs, intensity, bound and group, the kernels,
memory, fallbacks, CUDA graphs and graph breaks. Nothing is run, and the device need not be there.

TARGET is file.py:function, module:function, a preset, or the config.json of a Hugging Face model. A function takes no
arguments and returns what to trace, as (callable, args) or (callable, args, kwargs); meta and fake tensors do. For
example, in norms.py:

  def softmax():
      return torch.softmax, (torch.empty(64, 4096, device="meta"), -1)

Presets and configurations are built here without weights, and nothing is downloaded. --phase, --dtype, --batch and
--context are for them: decode is one token more with a cache of --context tokens, prefill a whole prompt (or the
forward pass of a model that doesn't decode), train the loss and its gradients. Presets:
  {', '.join(PRESETS)}
"""

REPORT_EXAMPLES = """\
examples:
  rooffuse report norms.py:softmax
  rooffuse report norms.py:softmax --device a100 --level kernel
  rooffuse report examples/llama.py:decode_step --device h100 --sort time --top 10
  rooffuse report examples/llama.py:prefill --device h100 --json plan.json
  rooffuse report examples/llama.py:prefill --device h100 --source fused_0
  rooffuse report llama-3.1-8b --device h100 --context 4096 --level module --sort time
  rooffuse report gpt2 --phase train --batch 8 --dtype bf16 --device a100 --html gpt2.html
  rooffuse report path/to/config.json --phase prefill --context 2048 --csv nodes.csv
  rooffuse report llama-3.1-8b --device h100 --formulas --sort time --top 10 --sizes B=1,8,64 S=1024,4096
  rooffuse report mlp.py:block --formulas --symbols B=64,d=1024 --json formulas.json
"""
