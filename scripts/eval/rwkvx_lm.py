"""lm-evaluation-harness on RWKV-7 and RWKV-X checkpoints through `rwkvx score`."""

import json
import subprocess

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model


@register_model("rwkvx")
class RwkvX(LM):
    def __init__(self, model, program="rwkvx", **_):
        super().__init__()
        self.command = [program, "score", "--json", "--model", model, "--requests", "-"]

    def score(self, pairs):
        lines = [json.dumps({"context": before, "continuation": after}) for before, after in pairs]
        done = subprocess.run(self.command, input="\n".join(lines), stdout=subprocess.PIPE, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def loglikelihood(self, requests):
        scores = self.score([request.args for request in requests])
        return [(score["log_probability"], score["greedy"]) for score in scores]

    def loglikelihood_rolling(self, requests):
        return [score["log_probability"] for score in self.score([("", request.args[0]) for request in requests])]

    def generate_until(self, requests):
        raise NotImplementedError("rwkvx score reads texts, it writes none")
