"""The recurrence as others compute it: flash-linear-attention and plain PyTorch."""

from functools import partial

import torch

from shared import CUDA, DTYPES, REFERENCE, Body, kept_rows, symmetric, uniform

# The decays lie above this, which lets FLA use longer chunks.
LOWER_BOUND = -0.61
GRADIENTS = ["d_receptance", "d_log_decay", "d_key", "d_value", "d_removal", "d_replacement"]
# A training pass of the plain recurrence keeps every state.
LONGEST_GRADIENT = 512
LONGEST_PLAIN_TIMING = 4096


def inputs(dims, dtype):
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


# Others.


def results(output, state=None, gradients=()):
    """What `gpu` writes of a pass: states of a few sequences only."""
    found = {"output": kept_rows(output)}
    if state is not None:
        found["state"] = state[:4].float()
    found.update((name, kept_rows(x)) for name, x in zip(GRADIENTS, gradients))
    return {name: x.detach().cpu() for name, x in found.items()}


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


def bodies(case, dtype, name):
    """The bodies of a pass."""
    dims = case["dims"]
    return BODIES[name](inputs(dims, DTYPES[dtype]), dims)
