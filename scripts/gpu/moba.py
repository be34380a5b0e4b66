"""MoBA by flash-linear-attention: the same attention, but it chooses by mean keys rounded to bf16."""

import sys
from types import ModuleType

import torch

from attention import GRADIENTS, Pass
from shared import CUDA, Body, kept_rows

# Scores of all queries with all chunks, which MoBA keeps at once.
MOST_SCORES = 1 << 30


def moba():
    """FLA's, on PyTorch's own flash attention where `flash_attn` is not installed."""
    try:
        import flash_attn  # noqa: F401
    except ImportError:
        stand_in_for_flash_attn()
    from fla.ops.moba import parallel_moba

    return parallel_moba


def stand_in_for_flash_attn():
    aten = torch.ops.aten

    def forward(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale, causal, dropout_p):
        sizes = (cu_seqlens_q.int(), cu_seqlens_k.int(), max_seqlen_q, max_seqlen_k)
        output, lse, *_ = aten._flash_attention_forward(q, k, v, *sizes, dropout_p, causal, False, scale=softmax_scale)
        if lse.dim() != 2:
            raise NotImplementedError("this PyTorch's flash attention has another layout of log-sum-exps")
        return output, lse, None, None

    def backward(dout, q, k, v, out, softmax_lse, dq, dk, dv, **options):
        sizes = [options[name] for name in ("cu_seqlens_q", "cu_seqlens_k")]
        sizes = [x.int() for x in sizes] + [options["max_seqlen_q"], options["max_seqlen_k"], 0.0, options["causal"]]
        random = torch.zeros(2, dtype=torch.int64, device=q.device)
        tensors = (dout, q, k, v, out, softmax_lse)
        scale = options["softmax_scale"]
        for target, found in zip((dq, dk, dv), aten._flash_attention_backward(*tensors, *sizes, random, random, scale=scale)):
            target.copy_(found)

    package, interface = ModuleType("flash_attn"), ModuleType("flash_attn.flash_attn_interface")
    # Called only without chunks to choose from.
    package.flash_attn_varlen_func = lambda *_, **__: NotImplemented
    interface._flash_attn_varlen_forward, interface._flash_attn_varlen_backward = forward, backward
    sys.modules |= {"flash_attn": package, "flash_attn.flash_attn_interface": interface}


def bodies(case, dtype, name):
    if not CUDA or dtype == "f32" or name == "decode":
        return
    scores = case["heads"] * case["tokens"] * (case["tokens"] // case["chunk_size"])
    given = Pass(case, dtype, name)
    yield given.reference()
    lengths = torch.tensor([0, case["tokens"]], dtype=torch.int32, device=given.tensors[0].device)

    def attend(query, key, value):
        if scores > MOST_SCORES:
            raise ValueError(f"{scores:.1e} scores would take too much memory")
        return moba()(query, key, value, lengths, case["tokens"], *given.shape)

    def call():
        return given.run(attend, given.tensors, given.d_output)

    def results():
        return {name: kept_rows(x).detach().cpu() for name, x in zip(["output", *GRADIENTS], call())}

    yield Body("FLA MoBA", results, call, optional=True)
