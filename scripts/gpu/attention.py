"""Full causal attention by PyTorch, and the definition of the sparse one."""

from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F

from shared import CUDA, DTYPES, REFERENCE, Body, kept_tokens, symmetric

FULL = {"SDPA flash": "FLASH_ATTENTION", "SDPA cuDNN": "CUDNN_ATTENTION", "SDPA efficient": "EFFICIENT_ATTENTION"}
GRADIENTS = ["d_query", "d_key", "d_value"]
# Of our results against the definition, norm(difference) / norm(definition). bf16 has 8 bits.
TOLERANCES = {"f32": 1e-5, "bf16": 1e-2}
# Of lengths of query and mean key: a smaller difference of scores may be lost in rounding.
CLOSE = 2**-15
# FLOPs of a call of full attention that is worth its time.
MOST_FLOPS = 1e14


def inputs(dims, dtype):
    """Query, key, value, [batch, time, heads, head_size]."""
    sequences = [symmetric(11, dims) * 4.0, symmetric(12, dims), symmetric(13, dims)]
    return [x.to(dtype) for x in sequences]


# The definition.


def attention_of(query, positions, key, value, chunk_size, top_k):
    """Queries [row, head_size] at some positions of one sequence, over all its keys [time, head_size]; and for which of them the choice
    hangs on rounding."""
    tokens = key.shape[0]
    chunks = tokens // chunk_size  # Only complete ones can be chosen.
    column = torch.arange(tokens, device=key.device)
    position, own = positions[:, None], positions[:, None] // chunk_size
    chosen = torch.zeros(len(positions), -(-tokens // chunk_size), dtype=torch.bool, device=key.device)  # [row, chunk]
    undecided = torch.zeros(len(positions), dtype=torch.bool, device=key.device)
    with torch.no_grad():
        means = key[: chunks * chunk_size].reshape(chunks, chunk_size, key.shape[1]).mean(1)
        earlier = torch.arange(chunks, device=key.device) < own
        scores = (query @ means.T).masked_fill(~earlier, -torch.inf)
        # A stable sort leaves the earlier of equal ones first.
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        best = order[:, : top_k - 1]
        chosen.scatter_(1, best, earlier.gather(1, best))
        if 1 < top_k <= chunks:
            close = CLOSE * query.norm(dim=1) * means.norm(dim=1).max()
            undecided = scores[:, top_k - 2] - scores[:, top_k - 1] < close
    seen = ((column // chunk_size == own) & (column <= position)) | chosen[:, column // chunk_size]
    scores = (query @ key.T * key.shape[1] ** -0.5).masked_fill(~seen, -torch.inf)
    return scores.softmax(-1) @ value, undecided


def definition(tensors, positions, shape, d_output=None):
    """Of one batch, in f64: the output at some positions; with its gradient that of the queries there, and, if those are all
    positions, those of keys and values. Rows of undecided queries are NaN."""
    tokens, positions = tensors[0].shape[1], torch.tensor(positions, device=tensors[0].device)
    whole, heads = len(positions) == tokens, []
    for head in range(tensors[0].shape[2]):
        query, key, value = (x[0, :, head].double() for x in tensors)
        leaves = [query[positions], key, value][: 3 if whole else 1]
        for leaf in leaves if d_output is not None else []:
            leaf.requires_grad_()
        output, undecided = attention_of(leaves[0], positions, key, value, *shape)
        found = [output.detach()]
        if d_output is not None:
            found += torch.autograd.grad(output, leaves, d_output[0, positions, head].double())
        for rows in found[:2]:
            rows[undecided] = torch.nan
        heads.append(found)
    names = ["output", *GRADIENTS]
    return {name: torch.stack(x, 1)[None].float().cpu() for name, x in zip(names, map(list, zip(*heads)))}


# Others.


def backend(name):
    if not CUDA:
        return nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel(getattr(SDPBackend, name))


class Pass:
    """What a pass is given."""

    def __init__(self, case, dtype, name):
        heads, size, tokens = case["heads"], case["head_size"], case["tokens"]
        self.shape, self.decoding = (case["chunk_size"], case["top_k"]), name == "decode"
        dims = [1, tokens + 1 if self.decoding else tokens, heads, size]
        self.tensors = inputs(dims, DTYPES[dtype])
        self.d_output = symmetric(8, dims).to(DTYPES[dtype]) if name == "training" else None
        self.positions = [tokens] if self.decoding else kept_tokens(dims)

    def reference(self):
        return Body(REFERENCE, lambda: definition(self.tensors, self.positions, self.shape, self.d_output))

    def run(self, function, tensors, d_output):
        """The output, and gradients if that of the output is given."""
        if d_output is None:
            return [function(*tensors)]
        leaves = [x.detach().requires_grad_() for x in tensors]
        output = function(*leaves)
        return [output, *torch.autograd.grad(output, leaves, d_output)]


def bodies(case, dtype, name):
    given = Pass(case, dtype, name)
    yield given.reference()
    heads, size, tokens = case["heads"], case["head_size"], case["tokens"]
    flops = 4 * size * heads * tokens**2 / 2 * {"decode": 0, "forward": 1, "training": 3.5}[name]

    def ordered(x):
        """Full attention gets the order of axes that it likes best, [batch, heads, time, head_size]."""
        return x.transpose(1, 2).contiguous()

    tensors = [ordered(x) for x in given.tensors]
    if given.decoding:
        tensors[0] = tensors[0][:, :, -1:]
    d_output = None if given.d_output is None else ordered(given.d_output)

    def full(which):
        if flops > MOST_FLOPS:
            raise ValueError(f"{flops / 1e12:.0f} TFLOP would take too long")
        with backend(which):
            function = partial(F.scaled_dot_product_attention, is_causal=not given.decoding)
            return given.run(function, tensors, d_output)

    for body, which in FULL.items():
        key = (body, tokens, heads, size, dtype, name)
        yield Body(body, call=partial(full, which), key=key, optional=True, label={"full": True})
