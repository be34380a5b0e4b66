"""What `suite` times, and how much work that is."""

DTYPES = ["bf16", "f32"]
BYTES = {"bf16": 2, "f32": 4}
HEAD_SIZE = 64


def wkv7(dims, *passes, dtypes=DTYPES):
    """The recurrence: batch, time, heads, head size."""
    label = {"operator": "wkv7", "dims": dims}
    size = {"operator": "wkv7", "dims": dims, "label": label, "file": "{}.safetensors"}
    return {"command": ["wkv7", "--dims", *dims], "passes": passes, "dtypes": dtypes, "sizes": [size]}


def attention(heads, shape, tokens, *passes, dtypes=("bf16",)):
    """The attention with chunks of `shape[0]` tokens and `shape[1]` of them per query. `tokens` are lengths, or what a cache holds before
    one more is decoded. All lengths in one process, which compiles each kernel once."""
    chunk_size, top_k = shape
    command = ["attention", "--heads", heads, "--head-size", HEAD_SIZE, "--chunk-size", chunk_size, "--top-k", top_k]
    command += [part for length in tokens for part in ("--tokens", length)]
    sizes = []
    for length in tokens:
        size = {"heads": heads, "head_size": HEAD_SIZE, "chunk_size": chunk_size, "top_k": top_k, "tokens": length}
        label = {"operator": "attention", "dims": [1, length, heads, HEAD_SIZE], "chunk_size": chunk_size, "top_k": top_k}
        sizes.append(size | {"operator": "attention", "label": label, "file": f"{{}}-{length}.safetensors"})
    return {"command": command, "passes": passes, "dtypes": dtypes, "sizes": sizes}


SHAPES = [(2048, 3), (128, 8)]
LENGTHS = [8192, 32768, 65536, 131072]
HELD = {12: [1 << 10, 1 << 16, 1 << 20], 40: [1 << 10, 1 << 16]}
# In the order in which they are timed. Decoding comes first because Triton keeps the variant of a kernel that was fastest at its first use.
RUNS = [
    wkv7([1, 1, 40, 64], "decode"),
    wkv7([32, 1, 40, 64], "decode"),
    wkv7([256, 1, 40, 64], "decode"),
    wkv7([8, 4096, 64, 64], "forward", "training"),
    wkv7([1, 65536, 40, 64], "forward", "training"),
    wkv7([1, 4096, 12, 64], "forward", "training"),
    wkv7([1, 65536, 12, 64], "forward", "training"),
    # Short enough for gradients of the definition, as is the first of the attention.
    wkv7([2, 256, 4, 64], "forward", "training"),
    attention(2, (64, 3), [1000], "forward", "training", dtypes=DTYPES),
    *(attention(heads, shape, LENGTHS, "forward", "training") for heads in HELD for shape in SHAPES),
    *(attention(heads, shape, held, "decode") for heads, held in HELD.items() for shape in SHAPES),
]
# What matters most, for a few minutes.
BRIEF_RUNS = [
    wkv7([8, 4096, 64, 64], "forward", "training", dtypes=("bf16",)),
    wkv7([1, 65536, 12, 64], "forward", "training", dtypes=("bf16",)),
    *(attention(12, shape, [65536, 131072], "forward", "training") for shape in SHAPES),
]
SMALL_RUNS = [
    wkv7([1, 1, 4, 64], "decode"),
    wkv7([2, 64, 2, 64], "forward", "training"),
    attention(2, (64, 3), [100, 1000], "forward", "training", dtypes=DTYPES),
    attention(2, (64, 3), [50, 1000], "decode", dtypes=DTYPES),
]
# Whose kernels are timed one by one: the recurrence has only a few.
KERNELS = [(12, shape, 65536) for shape in SHAPES]
SMALL_KERNELS = [(2, (64, 3), 1000)]


def work_of(line):
    """Bytes that any implementation must move, and FLOPs of what a line of timings measured."""
    return {"wkv7": wkv7_work, "attention": attention_work}[line["operator"]](line)


def wkv7_work(line):
    """FLOPs of the recurrence as it is written.

    FLOPs per token and head of size N, forward: decay (N^2); removal, its replacement, writing and reading (2 N^2 each). Backward:
    twice that. Bytes, forward: six sequences in, one out, and states in f32 where they are inputs or outputs. Backward: those six
    and the gradient of the output in, six gradients out.
    """
    batch, tokens, heads, size = line["dims"]
    sequence = batch * tokens * heads * size * BYTES[line["dtype"]]
    state = 4 * batch * heads * size**2
    flops = 9 * batch * tokens * heads * size**2
    return {
        "forward": (7 * sequence + state, flops),
        "decode": (7 * sequence + 2 * state, flops),
        "training": (20 * sequence + state, 3 * flops),
    }[line["pass"]]


def attention_work(line):
    """FLOPs of scores and sums over the keys that are seen, but not of choosing them.

    FLOPs per query, head of size N and key, forward: 4 N. Backward: 2.5 times that, as is usual. Bytes, forward: query, key, value in, one
    sequence out. Backward: those, output and its gradient in, three gradients out. Decoding: keys and values that are seen, and the mean
    keys in f32.
    """
    _, tokens, heads, size = line["dims"]
    full, chunk, others = line.get("full"), line["chunk_size"], line["top_k"] - 1
    row = heads * size * BYTES[line["dtype"]]
    if line["pass"] == "decode":
        earlier = tokens // chunk
        keys = tokens + 1 if full else tokens % chunk + 1 + min(earlier, others) * chunk
        means = 0 if full else 4 * earlier * heads * size
        return (2 * keys + 2) * row + means, 4 * heads * size * keys
    if full:
        keys = tokens * (tokens + 1) // 2
    else:
        lengths = [min(chunk, tokens - first) for first in range(0, tokens, chunk)]
        keys = sum(n * (n + 1) // 2 + n * min(c, others) * chunk for c, n in enumerate(lengths))
    flops = 4 * heads * size * keys
    return {"forward": (4 * tokens * row, flops), "training": (12 * tokens * row, 3.5 * flops)}[line["pass"]]
