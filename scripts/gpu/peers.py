"""The recurrence as others compute it, timed: flash-linear-attention and plain PyTorch.

    peers.py warm PLAN.json SHARE OF    compiles one share of the variants that Triton tries, so that `time` need not
    peers.py time PLAN.json             prints one line of JSON per result

The plan is that of `suite`: which cases, and where `gpu` left the results that are compared.
"""

import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
# The decays lie above this, which lets FLA use longer chunks.
LOWER_BOUND = -0.61
GRADIENTS = ["d_receptance", "d_log_decay", "d_key", "d_value", "d_removal", "d_replacement"]
REFERENCE = "plain PyTorch"
# A training pass of the plain recurrence keeps every state.
LONGEST_GRADIENT = 512
LONGEST_PLAIN_TIMING = 4096


# Inputs: the same numbers as `benches/gpu/inputs.rs`.


def hashed(x):
    """lowbias32 of 32-bit numbers, kept in 64 bits."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def uniform(seed, dims):
    count = 1
    for size in dims:
        count *= size
    index = torch.arange(count, dtype=torch.int64, device=DEVICE)
    return ((hashed(index ^ hashed(seed)) >> 8).to(torch.float32) / (1 << 24)).reshape(dims)


def symmetric(seed, dims):
    return uniform(seed, dims) * 2.0 - 1.0


def wkv7_inputs(dims, dtype):
    """r, w, k, v, a, b as FLA names them; [batch, time, heads, head_size]."""
    element = dims[3] ** -0.5
    removal = torch.where(uniform(5, dims) < 0.5, element, -element)
    decay = uniform(2, dims) * -0.6 - 0.001
    replacement = -removal * uniform(6, dims)
    sequences = [symmetric(1, dims), decay, symmetric(3, dims), symmetric(4, dims), removal, replacement]
    return [x.to(dtype) for x in sequences]


def state(dims):
    batch, _, heads, size = dims
    return symmetric(7, [batch, heads, size, size])  # [batch, heads, value, key]


# The definition.


def recurrence(r, w, k, v, a, b, state=None):
    """One token after another, in the type of the inputs; the state is [batch, heads, value, key]."""
    batch, time, heads, size = r.shape
    if state is None:
        state = r.new_zeros(batch, heads, size, size)
    decay, outputs = w.exp(), []
    for t in range(time):
        removed = state @ a[:, t].unsqueeze(-1)  # [batch, heads, value, 1]
        state = state * decay[:, t].unsqueeze(-2) + removed @ b[:, t].unsqueeze(-2) + v[:, t].unsqueeze(-1) @ k[:, t].unsqueeze(-2)
        outputs.append((state @ r[:, t].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1), state


# Comparison.


def kept_rows(sequence):
    """The tokens that `gpu` keeps of a sequence [batch, time, heads, head_size]."""
    last = min(16, sequence.shape[1]) - 1
    rows = [(sequence.shape[1] - 1) * i // max(last, 1) for i in range(last + 1)]
    return sequence[:, rows].float()


def results(output, state=None, gradients=()):
    """What `gpu` writes of a pass: states of a few sequences only."""
    found = {"output": kept_rows(output)}
    if state is not None:
        found["state"] = state[:4].float()
    found.update((name, kept_rows(x)) for name, x in zip(GRADIENTS, gradients))
    return {name: x.detach().cpu() for name, x in found.items()}


def errors(found, expected):
    """norm(found - expected) / norm(expected) of every tensor that both have."""
    return {
        name: ((found[name].double() - x.double()).norm() / x.double().norm()).item()
        for name, x in expected.items()
        if name in found
    }


# Timing, as in `benches/gpu/time.rs`.


def synchronise():
    if CUDA:
        torch.cuda.synchronize()


def measure(call, measurements):
    def seconds(calls):
        synchronise()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronise()
        return (time.perf_counter() - start) / calls

    seconds(3)
    calls = int(min(max(0.01 / seconds(1), 1), 1000))
    return [seconds(calls) for _ in range(measurements)]


def replayed(call):
    """The call as a CUDA graph, without what Python costs."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


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


def one_line(error):
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"


# The bodies of each pass.


@dataclass
class Body:
    name: str
    # Computes what is compared with other bodies.
    results: Callable[[], dict] | None = None
    # One call to be timed, and whether as a CUDA graph.
    call: Callable[[], object] | None = None
    graph: bool = False


def fla():
    """Imported when a body runs, so that the others do without it."""
    import fla.ops.rwkv7

    return fla.ops.rwkv7


def transposed(output, state):
    """FLA's states are [batch, heads, key, value]."""
    return results(output, state.transpose(-1, -2))


def forward_bodies(inputs, dims):
    def chunk(**options):
        return fla().chunk_rwkv7(*inputs, scale=1.0, output_final_state=True, **options)

    def bounded():
        return chunk(lower_bound=LOWER_BOUND)

    def recurrent():
        return fla().fused_recurrent_rwkv7(*inputs, scale=1.0, output_final_state=True)

    def plain():
        return recurrence(*(x.float() for x in inputs))

    yield Body("FLA chunk", lambda: transposed(*chunk()), chunk)
    yield Body("FLA chunk, decay bounded", lambda: transposed(*bounded()), bounded)
    yield Body("FLA fused recurrent", lambda: transposed(*recurrent()), recurrent)
    yield Body(REFERENCE, lambda: results(*plain()), plain if dims[1] <= LONGEST_PLAIN_TIMING else None)


def training_bodies(inputs, dims):
    d_output = symmetric(8, dims).to(inputs[0].dtype)

    def gradients(function, dtype=None):
        leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in inputs]
        output = function(*leaves)[0]
        return output, torch.autograd.grad(output, leaves, d_output.to(output.dtype))

    def chunk(**options):
        return gradients(lambda *x: fla().chunk_rwkv7(*x, scale=1.0, **options))

    def bounded():
        return chunk(lower_bound=LOWER_BOUND)

    def compared(output, found):
        return results(output, None, found)

    yield Body("FLA chunk", lambda: compared(*chunk()), chunk)
    yield Body("FLA chunk, decay bounded", lambda: compared(*bounded()), bounded)
    if dims[1] <= LONGEST_GRADIENT:
        yield Body(
            REFERENCE,
            lambda: compared(*gradients(recurrence, torch.float64)),
            lambda: gradients(recurrence, torch.float32),
        )


def decode_bodies(inputs, dims):
    r, w, k, v, a, b = inputs
    rate, floats = b / -a, [x.float() for x in inputs]
    before = state(dims)  # [batch, heads, value, key]
    before_transposed = before.transpose(-1, -2).contiguous()

    def recurrent(held):
        return fla().fused_recurrent_rwkv7(*inputs, scale=1.0, initial_state=held, output_final_state=True)

    def mul_recurrent(held):
        options = {"scale": 1.0, "initial_state": held, "output_final_state": True}
        return fla().fused_mul_recurrent_rwkv7(r, w, k, v, -a, rate, **options)

    def plain(held):
        return recurrence(*floats, held)

    def chained(function, state):
        """Calls that each go on from the state that the last one left."""

        def step():
            nonlocal state
            state = function(state)[1]

        return step

    def in_place(function, state):
        state = state.clone()
        return lambda: state.copy_(function(state)[1])

    for name, function in [("FLA fused recurrent", recurrent), ("FLA fused mul recurrent", mul_recurrent)]:
        compared = partial(lambda function: transposed(*function(before_transposed)), function)
        yield Body(name, compared, chained(function, before_transposed))
        if CUDA:
            yield Body(f"{name}, CUDA graph", call=in_place(function, before_transposed), graph=True)
    yield Body(REFERENCE, lambda: results(*plain(before)), chained(plain, before))


BODIES = {"forward": forward_bodies, "training": training_bodies, "decode": decode_bodies}


def time_pass(plan, case, dtype, name):
    """Every body of one pass: its timing, then what its results differ by."""
    dims = case["dims"]
    label = {"dims": dims, "dtype": dtype, "pass": name}
    inputs = wkv7_inputs(dims, DTYPES[dtype])
    found = {}
    for body in BODIES[name](inputs, dims):
        line = label | {"body": body.name}
        measurements = plan["measurements"] if body.name != REFERENCE else min(plan["measurements"], 5)
        try:
            if body.results:
                found[body.name] = body.results()
            if body.call:
                call = replayed(body.call) if body.graph else body.call
                yield line | {"seconds": measure(call, measurements)}
        except Exception as error:
            traceback.print_exc()
            yield line | {"error": one_line(error)}
    against = REFERENCE if REFERENCE in found else next(iter(found), None)
    if against is None:
        return
    ours = Path(case["results"][dtype]) / f"{name}.safetensors"
    if ours.exists():
        from safetensors.torch import load_file

        found["rwkvx"] = load_file(ours)
    for body, values in found.items():
        if body != against:
            yield label | {"body": body, "against": against, "errors": errors(values, found[against])}


def time_all(plan):
    deadline = time.monotonic() + plan["peer_seconds"]
    yield {"torch": torch.__version__, "device": torch.cuda.get_device_name() if CUDA else "CPU"}
    yield from ceilings(plan["measurements"], plan["small"])
    for dtype, case, name in plan["order"]:
        case = plan["cases"][case]
        if time.monotonic() > deadline:
            yield {"dims": case["dims"], "dtype": dtype, "pass": name, "body": "peers", "error": "out of time"}
            continue
        try:
            yield from time_pass(plan, case, dtype, name)
        except Exception as error:
            traceback.print_exc()
            yield {"dims": case["dims"], "dtype": dtype, "pass": name, "body": "peers", "error": one_line(error)}
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
        if (dtype, name) in seen:
            continue
        seen.add((dtype, name))
        batch, tokens, heads, size = plan["cases"][case]["dims"]
        dims = [batch, min(tokens, 256), heads, size]
        for body in BODIES[name](wkv7_inputs(dims, DTYPES[dtype]), dims):
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
