"""Compares rwkvx-eval with lm-evaluation-harness: every request, its score, and the metrics.

    pip install lm_eval pyarrow safetensors
    cargo build -p rwkvx-model -p rwkvx-eval
    python scripts/eval/parity/parity.py target/debug [--write rwkvx-eval/tests/data/harness]

Both ask the same random model on the small data sets of rwkvx-eval's tests: the harness by `rwkvx_lm.py` over `rwkvx score`,
ours by `rwkvx-eval choice` and `rwkvx-eval lambada`. `--write` keeps what the harness asked and found for `cargo test`.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import lm_eval
import lm_eval.tasks
import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import safetensors.numpy
import yaml
from lm_eval.api.metrics import pooled_sample_stderr

ROOT = pathlib.Path(__file__).parents[3]
FIXTURES = ROOT / "rwkvx-eval/tests/data/benchmarks"
WORLD_VOCAB = 65536
# How far two scores of one request may be apart, which are read in batches of different sizes.
TOLERANCE = 1e-4

sys.path.append(str(ROOT / "scripts/eval"))
from rwkvx_lm import RwkvX  # noqa: E402

# Task, the harness's file, the split and where the fixture is.
TASKS = [
    ("hellaswag", "hellaswag/hellaswag.yaml", "validation", "data/validation-00000-of-00001.parquet"),
    ("piqa", "piqa/piqa.yaml", "validation", "default/validation/0000.parquet"),
    ("arc_easy", "arc/arc_easy.yaml", "test", "ARC-Easy/test-00000-of-00001.parquet"),
    ("arc_challenge", "arc/arc_challenge.yaml", "test", "ARC-Challenge/test-00000-of-00001.parquet"),
    ("winogrande", "winogrande/default.yaml", "validation", "validation.jsonl"),
    ("sciq", "sciq/sciq.yaml", "test", "data/test-00000-of-00001.parquet"),
    ("lambada", "lambada/lambada_openai.yaml", "test", "test.jsonl"),
]
MMLU = [
    ("high_school_physics", "mmlu/default/mmlu_high_school_physics.yaml"),
    ("world_religions", "mmlu/default/mmlu_world_religions.yaml"),
]


def random_model(rwkvx, place):
    """The hybrid of rwkvx-model's tests with another embedding and head, so that it reads the World vocabulary."""
    path = place / "model.safetensors"
    tiny = ROOT / "rwkvx-model/tests/data/rwkvx_tiny.pth"
    subprocess.run([rwkvx, "convert", "--model", tiny, "--out", path], check=True, stdout=subprocess.DEVNULL)
    weights = safetensors.numpy.load_file(path)
    random = np.random.default_rng(1)
    for name, tensor in weights.items():
        if name.endswith(("emb.weight", "head.weight")):
            shape = (WORLD_VOCAB, tensor.shape[1])
            weights[name] = random.standard_normal(shape, np.float32)
    safetensors.numpy.save_file(weights, path)
    return path


def local_task(place, name, file, files, shots=None):
    """The harness's own task on local files; gives its name."""
    kind = "parquet" if next(iter(files.values())).endswith("parquet") else "json"
    tasks = pathlib.Path(lm_eval.tasks.__file__).parent
    task = {
        "include": str(tasks / file),
        "task": f"local_{name}",
        "dataset_path": kind,
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files},
        "training_split": None,
    }
    if "validation" not in files:
        task["validation_split"] = None
    if shots:
        task["num_fewshot"] = shots
    (place / f"{name}.yaml").write_text(yaml.safe_dump(task))
    return task["task"]


def local_tasks(place):
    names = {}
    for name, file, split, fixture in TASKS:
        names[name] = [local_task(place, name, file, {split: str(FIXTURES / name / fixture)})]
    names["mmlu"] = []
    for subject, file in MMLU:
        files = {}
        for split in ["test", "dev"]:
            table = pq.read_table(FIXTURES / f"mmlu/all/{split}-00000-of-00001.parquet")
            files[split] = str(place / f"{subject}-{split}.parquet")
            pq.write_table(table.filter(pc.field("subject") == subject), files[split])
        names["mmlu"].append(local_task(place, f"mmlu_{subject}", file, files, shots=5))
    return names


def harness(rwkvx, model, place):
    """What the harness asks and finds: for each task its requests with their scores, and its metrics."""
    names = local_tasks(place)
    manager = lm_eval.tasks.TaskManager(include_path=str(place))
    found = lm_eval.simple_evaluate(
        model=RwkvX(str(model), rwkvx),
        tasks=[name for parts in names.values() for name in parts],
        task_manager=manager,
        # Errors of means need none, but are left out without.
        bootstrap_iters=2,
    )
    results = {}
    for task, parts in names.items():
        requests = []
        for part in parts:
            for sample in sorted(found["samples"][part], key=lambda sample: sample["doc_id"]):
                for argument, [[score, greedy]] in zip(sample["arguments"], sample["resps"]):
                    requests.append([argument[0], argument[1], float(score), bool(greedy)])
        metrics = {}
        sizes = [len(found["samples"][part]) for part in parts]
        for key in found["results"][parts[0]]:
            metric, _, kind = key.partition(",")
            values = [found["results"][part][key] for part in parts]
            # The error of perplexity is by random samples.
            if kind != "none" or metric == "perplexity_stderr":
                continue
            if metric.endswith("_stderr"):
                metrics[metric] = float(pooled_sample_stderr(values, sizes))
            else:
                metrics[metric] = float(np.average(values, weights=sizes))
        results[task] = {"requests": requests, "metrics": metrics}
    return results


def ours(program, model, place, task):
    """What rwkvx-eval asks and finds, in the same form."""
    out = place / f"ours-{task}"
    if task == "lambada":
        command = ["lambada", FIXTURES / "lambada/test.jsonl"]
    else:
        command = ["choice", "--task", task, "--data", FIXTURES]
    options = ["--model", model, "--log-requests", "--json", "--out", out]
    done = subprocess.run([program, *command, *options], check=True, stdout=subprocess.PIPE)
    result = json.loads(done.stdout)["result"]
    lines = map(json.loads, (out / "requests.jsonl").read_text().splitlines())
    requests = [[line["context"], line["continuation"], line["log_probability"], line["greedy"]] for line in lines]
    if task == "lambada":
        means = {"acc": result["accuracy"]}
        metrics = {"perplexity": result["perplexity"]}
    else:
        means, metrics = result[0]["metrics"], {}
    for name, mean in means.items():
        metrics |= {name: mean["value"], f"{name}_stderr": mean["stderr"]}
    return {"requests": requests, "metrics": metrics}


def compare(task, theirs, ours):
    """Prints a line; gives whether all is alike."""
    alike = len(theirs["requests"]) == len(ours["requests"])
    furthest = 0.0
    for their, our in zip(theirs["requests"], ours["requests"]):
        furthest = max(furthest, abs(their[2] - our[2]) / abs(their[2]))
        if their[:2] != our[:2] or their[3] != our[3]:
            print(f"{task}: the harness asks {their}, rwkvx-eval {our}")
            alike = False
    for name, value in theirs["metrics"].items():
        ours_value = ours["metrics"].get(name, np.nan)
        if not np.isclose(value, ours_value, rtol=10 * TOLERANCE, atol=0):
            print(f"{task}: {name} is {value} by the harness, {ours_value} by rwkvx-eval")
            alike = False
    metrics = ", ".join(f"{name} {value:.6g}" for name, value in theirs["metrics"].items())
    print(f"{task:<14}{len(ours['requests']):>4} requests, scores within {furthest:.1e}, {metrics}")
    return alike and furthest <= TOLERANCE


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("programs", type=pathlib.Path, help="folder of rwkvx and rwkvx-eval")
    parser.add_argument("--write", type=pathlib.Path, help="folder for what the harness asked and found")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        place = pathlib.Path(place)
        rwkvx = str(arguments.programs / "rwkvx")
        model = random_model(rwkvx, place)
        theirs = harness(rwkvx, model, place)
        program = arguments.programs / "rwkvx-eval"
        alike = [compare(task, theirs[task], ours(program, model, place, task)) for task in theirs]
    if arguments.write:
        arguments.write.mkdir(parents=True, exist_ok=True)
        for task, found in theirs.items():
            text = json.dumps({"harness": lm_eval.__version__, **found}, indent=1, ensure_ascii=False)
            (arguments.write / f"{task}.json").write_text(text + "\n")
    if not all(alike):
        sys.exit("rwkvx-eval and lm-evaluation-harness differ")
    print(f"rwkvx-eval and lm-evaluation-harness {lm_eval.__version__} agree")


if __name__ == "__main__":
    main()
