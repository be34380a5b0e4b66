"""The results of `suite` as text."""


def key(line):
    shape = line.get("chunk_size", 0), line.get("top_k", 0)
    return line["operator"], line["pass"] == "decode", line["dims"][2], shape, tuple(line["dims"]), line["pass"], line["dtype"]


def name(line):
    batch, tokens, heads, size = line["dims"]
    if line["operator"] == "wkv7":
        return f"wkv7 B{batch} T{tokens} H{heads} N{size}"
    length = f"held {tokens}" if line["pass"] == "decode" else f"T{tokens}"
    return f"attention {line['chunk_size']}x{line['top_k']} B{batch} {length} H{heads} N{size}"


def rows(results):
    """All measurements side by side; ratios are to our time (above 1: slower than ours) and to what the device can do at most."""
    head = ["case", "pass", "type", "body", "median ms", "p10", "p90", "time/ours"]
    yield head + ["GB/s", "of copy", "TFLOP/s", "of matmul", "error", "against"]
    ceilings = results["ceilings"]

    def of(value, name):
        return f"{value / ceilings[name]:.1%}" if name in ceilings else "-"

    ours = {key(line): line["median_s"] for line in results["measurements"] if line["body"] == "rwkvx"}
    differences = {(key(line), line["body"]): line for line in results["differences"]}
    for line in sorted(results["measurements"], key=key):
        seconds = line["median_s"]
        bandwidth, rate = line["bytes"] / seconds, line["flops"] / seconds
        difference = differences.get((key(line), line["body"]), {})
        worst = max(difference.get("errors", {}).items(), key=lambda item: item[1], default=None)
        own = ours.get(key(line))
        yield (
            [name(line), line["pass"], line["dtype"], line["body"]]
            + [f"{line[figure] * 1e3:.4g}" for figure in ("median_s", "p10_s", "p90_s")]
            + [f"{seconds / own:.2f}" if own else "-"]
            + [f"{bandwidth / 1e9:.4g}", of(bandwidth, "copy")]
            + [f"{rate / 1e12:.3g}", of(rate, f"matmul {line['dtype']}")]
            + [f"{worst[1]:.1e} {worst[0]}" if worst else "-", difference.get("against", "-")]
        )


def kernel_rows(report):
    """What each kernel of a call takes; `net` is without the cost of launches."""
    yield ["kernel", "launches", "ms", "net ms"]
    for kernel, times in report["kernels"].items():
        yield [kernel, f"{times['launches']:.0f}", f"{times['seconds'] * 1e3:.3f}", f"{times['net_seconds'] * 1e3:.3f}"]


def aligned(rows):
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]


def tabulate(results):
    lines = aligned(rows(results))
    for report in results["kernels"]:
        shares = f"{report['choosing']:.1%} of all kernels, with launches {report['choosing_with_launches']:.1%}"
        lines += ["", f"{name(report)} {report['pass']} {report['dtype']}: choosing and listing take {shares}"]
        lines += aligned(kernel_rows(report))
    lines += ["", "ceilings: " + ", ".join(f"{name} {value / 1e12:.3g} T/s" for name, value in results["ceilings"].items())]
    for section, report in results["sections"].items():
        lines.append(f"{section}: {report.get('error', 'ok')} ({report['seconds']} s)")
        lines += [f"    {test}: {reason}" for test, reason in report.get("failed", {}).items()] if section == "tests" else []
        lines += [f"    left out: {reason}" for reason in report.get("skipped", [])]
    return "\n".join(lines) + "\n"
