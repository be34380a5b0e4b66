"""What CubeCL logs of each kernel that it runs, summed up.

CubeCL waits for the device before and after each kernel, so what it logs holds the cost of a launch, which no one pays who does not wait.
That is what the fastest kernel logs with next to nothing to do, and is taken off.
"""

import re
import statistics
from collections import defaultdict

# Put beside a process as `cubecl.toml`.
CONFIGURATION = '[profiling.logger]\nlevel = "basic"\nstdout = true\n'
UNITS = {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
LAUNCH = re.compile(r"^\| ([\d.]+)(ns|µs|ms|s) +\| (\w+)", re.MULTILINE)
# The first kernel of a call, and how those begin that come before the attention itself.
FIRST = "AttentionMeans"
CHOOSING = tuple("Attention" + name for name in ("Means", "Choose", "Sort", "Count", "Starts", "Place"))


def calls(log):
    """Of each call the seconds of its launches by kernel. The first calls compile, and the last may be cut off."""
    found = []
    for number, unit, kernel in LAUNCH.findall(log):
        if kernel == FIRST:
            found.append(defaultdict(list))
        if found:
            found[-1][kernel].append(float(number) * UNITS[unit])
    return found[len(found) // 2 : -1]


def summary(log, idle_log):
    """Medians over the calls, and which part of them goes into choosing and listing."""
    busy, idle = calls(log), calls(idle_log)
    if not busy or not idle:
        raise ValueError(f"no kernels in CubeCL's log, which ends with {log[-300:]!r}")
    costs = defaultdict(list)
    for call in idle:
        for kernel, seconds in call.items():
            costs[kernel] += seconds
    cost, kernels = min(map(statistics.median, costs.values())), {}
    for kernel in dict.fromkeys(kernel for call in busy for kernel in call):
        seconds = statistics.median(sum(call[kernel]) for call in busy)
        launches = statistics.median(len(call[kernel]) for call in busy)
        kernels[kernel] = {"launches": launches, "seconds": seconds, "net_seconds": max(seconds - launches * cost, 0.0)}

    def share(figure):
        chosen = sum(times[figure] for kernel, times in kernels.items() if kernel.startswith(CHOOSING))
        return chosen / sum(times[figure] for times in kernels.values())

    return {
        "kernels": kernels,
        "launch_seconds": cost,
        "choosing": share("net_seconds"),
        "choosing_with_launches": share("seconds"),
    }
