#!/usr/bin/env python3
"""Trains the experiment's tokenizer: needs `pip install tokenizers` and the built rwkvx-datasets.

    tokenizer.py RWKVX-DATASETS OUT.json [TEXT ...]

A byte-level BPE, from generated needles and files of text of your choice (source files, say). Words are tokens where they are frequent enough,
numbers are cut into pairs of digits, so that an answer is some three tokens long.
"""
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY = 2816
WORDS = Path(__file__).parents[3] / "datasets/data"

program, out, *files = sys.argv[1:]
texts = [Path(file).read_text(errors="replace") for file in files]
with tempfile.TemporaryDirectory() as folder:
    for kind, documents in [("facts", 3000), ("ruler-number", 400), ("ruler-uuid", 400), ("ruler-passkey", 60)]:
        prefix = f"{folder}/{kind}"
        options = ["--out", prefix, "--documents", str(documents), "--tokens", "1000", "--kind", kind, "--tokenizer", "byte"]
        subprocess.run([program, "needles", *options], check=True, stdout=subprocess.DEVNULL)
        ids = struct.unpack(f"<{Path(prefix + '.bin').stat().st_size // 2}H", Path(prefix + ".bin").read_bytes())
        texts.append(bytes(id - 1 for id in ids if id > 0).decode())
# Each word of the keys is seen often, so that all are tokens.
adjectives, nouns = ((WORDS / f"{name}.txt").read_text().split() for name in ("adjectives", "nouns"))
texts += [" ".join(f"a {word}" for word in adjectives), " ".join(f"a-{word}" for word in nouns)] * 60

alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer = Tokenizer(models.BPE())
pieces = Regex(r" ?\p{L}+|-\p{L}+|\d{1,2}|[^\s\p{L}\d]|\s")
tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Split(pieces, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
)
tokenizer.decoder = decoders.ByteLevel()
trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|end|>"], initial_alphabet=alphabet)
tokenizer.train_from_iterator(texts, trainer)
tokenizer.save(out)
