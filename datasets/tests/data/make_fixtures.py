"""Writes the fixtures of this folder with the libraries whose formats they are in.

    pip install pyarrow==26.0.1 mosaicml-streaming==0.13.0 tokenizers==0.22.2 numpy==2.1.3
    python make_fixtures.py
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from streaming import MDSWriter
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = Path(__file__).parent
BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"

TEXTS = [
    "The first document.\n\nIt has two paragraphs.",
    "Zwei Wörter, ein Absatz – und «Anführungszeichen».",
    'fn main() {\n    println!("{}", 6 * 7);\n}\n',
    "日本語の文書。",
    "Emoji 😀👍🏽 and a null \0 byte.",
    " leading and trailing space ",
] + [f"Document {number} of the fixtures, the same in every format." for number in range(6, 24)]


def parquet():
    folder = HERE / "parquet"
    folder.mkdir()
    half = len(TEXTS) // 2
    options = dict(row_group_size=5, use_dictionary=False, store_schema=False)
    table = pa.table({"id": range(half), "text": TEXTS[:half]})
    pq.write_table(table, folder / "train-00000-of-00002.parquet", compression="snappy", **options)
    # A row without text in the middle, and the newer page format.
    rest = TEXTS[half:]
    table = pa.table({"text": rest[:3] + [None] + rest[3:]})
    pq.write_table(table, folder / "train-00001-of-00002.parquet", compression="zstd", data_page_version="2.0",
                   row_group_size=5)


def tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(
        vocab_size=320, show_progress=False, special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    tokenizer.save(str(HERE / "tokenizer.json"), pretty=False)
    return tokenizer


def sequences(documents, size):
    """Runs of whole documents of at least `size` tokens, with the bounds of the documents."""
    ids, bounds = [], []
    for document in documents:
        bounds.append((len(ids), len(ids) + len(document)))
        ids += document
        if len(ids) >= size:
            yield ids, bounds
            ids, bounds = [], []
    if ids:
        yield ids, bounds


def mds(name, samples, columns, **options):
    with MDSWriter(out=str(HERE / "mds" / name), columns=columns, **options) as writer:
        for sample in samples:
            writer.write(sample)


def all_mds(tokenizer):
    begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
    documents = [[begin] + tokenizer.encode(text).ids + [end] for text in TEXTS]

    def prolong(size):
        for ids, bounds in sequences(documents, size):
            yield {
                "domain": "fixtures",
                "indices": np.array(bounds, np.uint32),
                "input_ids": np.array(ids, np.uint32),
                "length": np.uint64(len(ids)),
            }

    columns = {"domain": "str", "indices": "ndarray:uint32", "input_ids": "ndarray:uint32", "length": "uint64"}
    mds("plain", prolong(100), columns, size_limit=1800)
    columns = {"domain": "str", "indices": "ndarray", "input_ids": "ndarray", "length": "uint64"}
    mds("zstd", prolong(100), columns, compression="zstd:7", size_limit=1800)
    # One stream cut every 32 tokens, through documents and characters, without bounds.
    stream = [id for document in documents for id in document]
    pieces = [stream[start : start + 32] for start in range(0, len(stream) - 31, 32)]
    mds("fixed", ({"input_ids": np.array(piece, np.uint32)} for piece in pieces), {"input_ids": "ndarray:uint32:32"})


def main():
    for folder in ("parquet", "mds"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in TEXTS]
    (HERE / "documents.jsonl").write_text("".join(lines), encoding="utf-8")
    parquet()
    all_mds(tokenizer())


if __name__ == "__main__":
    main()
