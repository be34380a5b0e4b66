"""The machine with a GPU: a session there, programs that were carried there, and what they need of CUDA."""

import argparse
import json
import lzma
import os
import shutil
import signal
import subprocess
import tarfile
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Where kernels are, and which variants were fastest, so that a second process need neither compile nor tune.
CUBECL = """
[compilation.cache]
file = "{kernels}"
[autotune.cache]
file = "{tuned}"
[autotune.logger]
level = "full"
file = "{tuned}.log"
"""


def parser(description, seconds):
    """The options of every session."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--backend", default="cuda")
    parser.add_argument("--carried", type=Path, default=ROOT / "target/gpu", help="what scripts/gpu/build made")
    parser.add_argument("--out", type=Path, default=os.environ.get("OUT"), help="default: $OUT, else CARRIED/results")
    parser.add_argument("--seconds", type=float, default=seconds, help="when to stop")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to try this script out")
    parser.add_argument("--compile", action="store_true", help="only compile the kernels, for which scripts/gpu/build has a stand-in for the GPU")
    return parser


class Session:
    """Some time of the machine, in sections of which each stands alone: one that fails is reported, and the others run."""

    def __init__(self, options, name, results):
        """`name` is of the folder for files that are needed no longer, `results` of what is written after each section."""
        self.options = options
        self.started = time.monotonic()
        self.carried = options.carried.resolve()
        self.out = (options.out or self.carried / "results").resolve()
        self.work = self.carried / name
        shutil.rmtree(self.work, ignore_errors=True)
        for folder in (self.out, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.path = self.out / results
        self.environment = {}
        packed = self.carried / "kernels.tar.xz"
        if packed.exists() and not (self.carried / "kernels").exists():
            with tarfile.open(packed) as archive:
                archive.extractall(self.carried, filter="data")
        self.results = {"backend": options.backend, "sections": {}}

    def left(self):
        return self.options.seconds - (time.monotonic() - self.started)

    def limit(self, seconds):
        """How long something may take that takes `seconds` at most where nothing is compiled."""
        return self.left() if self.options.compile else min(seconds, self.left())

    def section(self, name, run):
        start = time.monotonic()
        print(f"--- {name}, {self.left():.0f} s left", flush=True)
        try:
            report = run() or {}
        except Exception as error:
            report = {"error": f"{type(error).__name__}: {error}"}
        report["seconds"] = round(time.monotonic() - start, 1)
        self.results["sections"][name] = report
        self.write()
        if "error" in report:
            print(f"    {report['error']}", flush=True)
        return report

    def write(self):
        self.path.with_suffix(".new").write_text(json.dumps(self.results, indent=1))
        self.path.with_suffix(".new").replace(self.path)

    def binary(self, name):
        """A program that `scripts/gpu/build` packed, ready to run."""
        path = self.work / name
        if not path.exists():
            path.write_bytes(lzma.decompress((self.carried / f"{name}.xz").read_bytes()))
            path.chmod(0o755)
        return path

    def folder(self, name, more=""):
        """Where a process may work, with CubeCL's settings in it."""
        path = self.work / name
        path.mkdir(exist_ok=True)
        # What was fastest on a stand-in means nothing.
        tuned = (self.work if self.options.compile else self.carried) / "tuned"
        (path / "cubecl.toml").write_text(CUBECL.format(kernels=self.carried / "kernels", tuned=tuned) + more)
        return path

    def cuda(self):
        """What the kernels need of CUDA at run time, where that is the backend."""
        return cuda_environment(self.carried, self.work) if self.options.backend == "cuda" else {}


class Process:
    """A child whose output goes to files, so that what it printed outlives it."""

    def __init__(self, command, work, name, environment=None):
        self.out, self.err = work / f"{name}.out", work / f"{name}.err"
        self.child = subprocess.Popen(
            [str(part) for part in command],
            stdout=self.out.open("wb"),
            stderr=self.err.open("wb"),
            stdin=subprocess.DEVNULL,
            cwd=work,
            env=os.environ | (environment or {}),
            start_new_session=True,
        )

    def wait(self, seconds):
        """The exit status, or what was wrong; the child is gone afterwards."""
        try:
            return self.child.wait(max(seconds, 1))
        except subprocess.TimeoutExpired:
            os.killpg(self.child.pid, signal.SIGKILL)
            self.child.wait()
            return "out of time"

    def lines(self):
        """The lines of JSON among the output; the last may be cut off."""
        for line in self.out.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                try:
                    yield json.loads(line)
                except ValueError:
                    pass

    def failure(self, status):
        """What a failed child said, in a few lines."""
        lines = [line for line in self.err.read_text(errors="replace").splitlines() if line.strip()]
        panics = [i for i, line in enumerate(lines) if "panicked at" in line]
        shown = lines[panics[0] : panics[0] + 4] if panics else lines[-4:]
        said = " | ".join(line.strip()[:300] for line in shown)
        return f"{status if isinstance(status, str) else f'exit {status}'}: {said}"


def gpu():
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=30).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def cuda_environment(carried, work):
    """What the kernels need of CUDA at run time: NVRTC and headers."""
    headers = ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "mma.h", "crt/mma.h"]
    packages = [Path(p) for p in (find_spec("nvidia").submodule_search_locations if find_spec("nvidia") else [])]
    roots = [Path(os.environ.get("CUDA_PATH", "/nonexistent")), Path("/usr/local/cuda")]
    roots += [folder for package in packages for folder in sorted(package.iterdir()) if folder.is_dir()]

    def complete(root):
        include = root / "include"
        standard = (include / "cccl/cuda/std").is_dir() or (include / "cuda/std").is_dir()
        return standard and all((include / header).exists() for header in headers)

    path = next((root for root in roots if complete(root)), None)
    if path is None:
        for wheel in carried.glob("nvidia_cuda_*.whl"):
            zipfile.ZipFile(wheel).extractall(work / "cuda")
        path = work / "cuda/nvidia/cu13"
    folders = [root / name for root in [path, *roots] for name in ("lib64", "lib", "lib/x86_64-linux-gnu")]
    libraries = [folder for folder in folders if list(folder.glob("libnvrtc.so*"))][:1]
    search = [str(folder) for folder in libraries] + os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return {"CUDA_PATH": str(path), "LD_LIBRARY_PATH": ":".join(filter(None, search))}
