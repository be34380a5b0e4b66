"""What the peers of every operator need: inputs, timing, comparison."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
REFERENCE = "plain PyTorch"
# Numbers that are made at once.
PIECE = 1 << 26
# As in `benches/gpu/time.rs`.
NUMBERS_KEPT = 1 << 18
LONGEST = 1.0
FEWEST_MEASUREMENTS = 5


@dataclass
class Body:
    name: str
    # Computes what is compared with other bodies.
    results: Callable[[], dict] | None = None
    # One call to be timed, and whether as a CUDA graph.
    call: Callable[[], object] | None = None
    graph: bool = False
    # Bodies of the same key do the same, and are timed once.
    key: tuple | None = None
    # A body that cannot run everywhere is left out where it fails.
    optional: bool = False
    # More to say of its timing.
    label: dict | None = None


# Inputs: the same numbers as `benches/gpu/inputs.rs`.


def hashed(x):
    """lowbias32 of 32-bit numbers, kept in 64 bits."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & 0xFFFFFFFF
    x = ((x ^ (x >> 15)) * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def uniform(seed, dims):
    count = math.prod(dims)
    numbers = torch.empty(count, dtype=torch.float32, device=DEVICE)
    for first in range(0, count, PIECE):
        last = min(first + PIECE, count)
        index = torch.arange(first, last, dtype=torch.int64, device=DEVICE)
        numbers[first:last] = (hashed(index ^ hashed(seed)) >> 8).to(torch.float32) / (1 << 24)
    return numbers.reshape(dims)


def symmetric(seed, dims):
    return uniform(seed, dims) * 2.0 - 1.0


# Comparison.


def kept_tokens(dims):
    """The tokens that `gpu` keeps of sequences [batch, time, heads, head_size]."""
    batch, tokens, heads, size = dims
    last = min(tokens, max(NUMBERS_KEPT // (batch * heads * size), 1)) - 1
    return [(tokens - 1) * i // max(last, 1) for i in range(last + 1)]


def kept_rows(sequence):
    return sequence[:, kept_tokens(sequence.shape)].float()


def errors(found, expected):
    """norm(found - expected) / norm(expected) of every tensor that both have, where the expected is not NaN."""

    def error(found, expected):
        known = ~expected.isnan()
        found, expected = found[known].double(), expected[known].double()
        return ((found - expected).norm() / expected.norm()).item()

    return {name: error(found[name], x) for name, x in expected.items() if name in found}


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
    one = seconds(1)
    calls = int(min(max(0.01 / one, 1), 1000))
    most = max(int(LONGEST / (calls * one)), FEWEST_MEASUREMENTS)
    return [seconds(calls) for _ in range(min(measurements, most))]


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


def one_line(error):
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300] if lines else ''}"
