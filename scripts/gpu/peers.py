"""The operators as others compute them, timed: flash-linear-attention and PyTorch.

    peers.py warm PLAN.json SHARE OF    compiles one share of the variants that Triton tries, so that `time` need not
    peers.py time PLAN.json             prints one line of JSON per result

The plan is that of `suite`: which cases, and where `gpu` left the results that are compared.
"""

import json
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import torch

import attention
import moba
import wkv7
from shared import CUDA, DEVICE, DTYPES, REFERENCE, errors, measure, one_line, replayed

OPERATORS = {"wkv7": wkv7, "attention": attention, "moba": moba}


def ceilings(measurements, small):
    """What this device can do at most, measured on operations that do nothing else."""

    def copy(elements):
        source = torch.randn(elements, device=DEVICE, dtype=torch.bfloat16)
        target = torch.empty_like(source)
        return 2 * source.nelement() * source.element_size(), measure(lambda: target.copy_(source), measurements)

    def matmul(size, dtype):
        x, y = (torch.randn(size, size, device=DEVICE, dtype=DTYPES[dtype]) for _ in range(2))
        return 2 * size**3, measure(lambda: x @ y, measurements)

    operations = {"copy": lambda: copy(1 << (20 if small else 30))}
    for dtype in ["bf16", "f32"]:
        operations[f"matmul {dtype}"] = partial(matmul, 256 if small else 8192, dtype)
    for name, operation in operations.items():
        try:
            amount, seconds = operation()
            yield {"ceiling": name, "amount": amount, "seconds": seconds}
        except Exception as error:
            traceback.print_exc()
            yield {"body": name, "error": one_line(error)}


def bodies(case, dtype, name):
    return OPERATORS[case["operator"]].bodies(case, dtype, name)


def timed(plan, body, seen):
    """Seconds per call of each measurement; `seen` are those of other passes."""
    if body.key in seen:
        return seen[body.key]
    measurements = plan["measurements"] if body.name != REFERENCE else min(plan["measurements"], 5)
    seconds = measure(replayed(body.call) if body.graph else body.call, measurements)
    if body.key:
        seen[body.key] = seconds
    return seconds


def time_pass(plan, case, dtype, name, label, seen):
    """Every body of one pass: its timing, then what its results differ by."""
    found = {}
    for body in bodies(case, dtype, name):
        line = label | {"body": body.name}
        try:
            if body.results:
                found[body.name] = body.results()
            if body.call:
                yield line | (body.label or {}) | {"seconds": timed(plan, body, seen)}
        except Exception as error:
            traceback.print_exc()
            yield line | {"skipped" if body.optional else "error": one_line(error)}
    against = REFERENCE if REFERENCE in found else next(iter(found), None)
    if against is None:
        return
    ours = Path(case["results"][dtype]) / case["file"].format(name)
    if ours.exists():
        from safetensors.torch import load_file

        found["rwkvx"] = load_file(ours)
    for body, values in found.items():
        if body != against:
            line = label | {"body": body, "against": against, "errors": errors(values, found[against])}
            if body == "rwkvx":
                line["tolerance"] = getattr(OPERATORS[case["operator"]], "TOLERANCES", {}).get(dtype)
            yield line


def time_all(plan):
    deadline = time.monotonic() + plan["peer_seconds"]
    yield {"torch": torch.__version__, "device": torch.cuda.get_device_name() if CUDA else "CPU"}
    if plan["ceilings"]:
        yield from ceilings(plan["measurements"], plan["small"])
    seen = {}
    for dtype, case, name in plan["order"]:
        case = plan["cases"][case]
        label = case["label"] | {"dtype": dtype, "pass": name}
        if time.monotonic() > deadline:
            yield label | {"body": "peers", "error": "out of time"}
            continue
        try:
            yield from time_pass(plan, case, dtype, name, label, seen)
        except Exception as error:
            traceback.print_exc()
            yield label | {"body": "peers", "error": one_line(error)}
        if CUDA:
            torch.cuda.empty_cache()


def set_autotuner_benchmark(benchmark):
    from triton.runtime.autotuner import Autotuner

    Autotuner.do_bench = property(lambda _: benchmark)


def shorten_autotuning():
    """Triton times each variant for 125 ms by default, and there are hundreds."""
    from triton.testing import do_bench

    set_autotuner_benchmark(lambda call, quantiles: do_bench(call, warmup=5, rep=20, quantiles=quantiles))


def warm(plan, share, of):
    """Runs the passes that are timed first, with only a share of every kernel's variants to choose from."""
    from triton.runtime.autotuner import Autotuner

    def compile_only(call, quantiles):
        call()
        return [1.0] * len(quantiles)

    set_autotuner_benchmark(compile_only)
    initialise = Autotuner.__init__

    def initialise_with_share(self, *arguments, **options):
        initialise(self, *arguments, **options)
        # The first is always among them, lest none of a share can run.
        self.configs = list(dict.fromkeys(self.configs[:1] + self.configs[share::of]))

    Autotuner.__init__ = initialise_with_share
    seen = set()
    for dtype, case, name in plan["order"]:
        case = plan["cases"][case]
        # Nothing is tuned for the attention.
        if case["operator"] != "wkv7" or (dtype, name) in seen:
            continue
        seen.add((dtype, name))
        batch, tokens, heads, size = case["dims"]
        for body in bodies({**case, "dims": [batch, min(tokens, 256), heads, size]}, dtype, name):
            if body.name.startswith("FLA") and body.results:
                body.results()


def main():
    command, plan = sys.argv[1], json.loads(Path(sys.argv[2]).read_text())
    if command == "warm":
        warm(plan, int(sys.argv[3]), int(sys.argv[4]))
        return
    if CUDA:
        try:
            shorten_autotuning()
        except Exception:
            traceback.print_exc()
    for line in time_all(plan):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
