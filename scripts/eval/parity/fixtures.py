"""Small data sets in the formats of the published ones, for `parity.py` and the tests of rwkvx-eval.

    python scripts/eval/parity/fixtures.py rwkvx-eval/tests/data/benchmarks

The questions are made up. They hold what the real ones do and prompts can get wrong: marks in brackets and double spaces,
labels that are letters or digits, three and five choices, empty supports, letters beyond ASCII, white space at the ends.
"""

import json
import pathlib
import sys

import pyarrow as pa
import pyarrow.parquet as pq

HELLASWAG = [
    ("Making tea", "A woman fills a kettle with water. She", "sets it on the stove.",
     ["waits until it boils.", "paints it [step] green  and blue.", "reads.", "sings to the [substeps] cat [title] Done."], "0"),
    ("Home and Garden", "[header] How to plant a tree [title] Dig a hole. [step] Make it twice as wide as the roots.", "",
     ["[title] Set the tree in. [step] Fill the hole.", "Run [1] away.", "Ask [a\nb] again.", " Cut it down. "], "0"),
    ("Café", "Two men sit at a table. They", "ORDER coffee and a Croissant.",
     ["The crème brûlée arrives.", "They jump over the café.", "It rains upward.", "Señor Núñez waves."], "3"),
    ("Swimming", "A boy stands on the board. he", "he jumps and turns.",
     ["He dives in.", "He dives up  and up.", "He eats the board.", "He is a fish."], "2"),
]
PIQA = [
    ("How do I keep bread fresh?", "Put it in a closed box.", "Put it in the sun, then in the rain.", 0),
    ("To open a jar:", "turn the lid.", "Turn the table.", 0),
    ("Dry wet shoes ", " Hide them under the bed", "Stuff them with paper overnight.", 1),
    ("Sharpen a pencil", "boil it", "use a sharpener…", 1),
    ("Naïve question?", "Oui", "No", 0),
]
ARC = [
    ("ARC_1", "Which is a source of light?", ["the Sun", "a mirror", "a stone", "a cloud"], "ABCD", "A"),
    ("ARC_2", "What do plants take in?", ["oxygen only", "carbon dioxide", "sand"], "123", "2"),
    ("ARC_3", "Water boils at sea level at", ["0 °C", "50 °C", "100 °C", "150 °C", "200 °C"], "ABCDE", "C"),
    ("ARC_4", "A magnet attracts\nwhich of these? ", ["wood", "iron", "glass", "wool"], "1234", "2"),
]
WINOGRANDE = [
    ("The trophy did not fit in the case because the _ was too large.", "trophy", "case", "1"),
    ("Anna lent Maria a pen, so _ thanked her.", "Anna", "Maria", "2"),
    ("_ was late, and so Tom waited for Ben _ an hour.", "Tom", "Ben", "2"),
    ("The rope held and the thread broke, because it was the _", "weaker one.", "stronger one.", "1"),
]
SCIQ = [
    ("What carries blood from the heart?", "nerves", "bones", "veins", "arteries",
     " Arteries carry blood away from the heart. Veins carry it back."),
    ("What is the smallest unit of an element?", "cell", "grain", "wave", "atom", ""),
    ("Which gas do we breathe in to live?", "helium", "neon", "argon", "oxygen", "\n Oxygen is in the air.\nIt is needed. "),
]
SUBJECTS = ["high_school_physics", "world_religions"]


def mmlu(subject, split):
    count = 6 if split == "dev" else 3
    name = subject.split("_")[-1]
    return [
        (f"{' ' if at == 1 else ''}Question {at} of the {split} split about {name}?\nThink.{'  ' if at == 2 else ''}",
         subject, [f"{name} {(at * 7 + choice) % 5}" for choice in range(4)], (at * 3 + len(name)) % 4)
        for at in range(count)
    ]


LAMBADA = [
    "The old man walked to the door. He took the key and opened the door",
    "“You came,” she said. “I did not think that you would,” said Émile",
    "He looked at the cat.\nThe cat looked at him. Then the cat ate the fish and left him with the cat",
    "one two",
]


def table(path, columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="snappy")


def columns(names, rows):
    return dict(zip(names, map(list, zip(*rows))))


def main(out):
    hellaswag = columns(["activity_label", "ctx_a", "ctx_b", "endings", "label"], HELLASWAG)
    hellaswag["ind"] = pa.array(range(len(HELLASWAG)), pa.int32())
    hellaswag["ctx"] = [f"{a} {b}" for a, b in zip(hellaswag["ctx_a"], hellaswag["ctx_b"])]
    table(out / "hellaswag/data/validation-00000-of-00001.parquet", hellaswag)
    table(out / "piqa/default/validation/0000.parquet", columns(["goal", "sol1", "sol2", "label"], PIQA))
    choices = pa.struct([("text", pa.list_(pa.string())), ("label", pa.list_(pa.string()))])
    for name, records in [("easy", ARC), ("challenge", ARC[::-1])]:
        arc = columns(["id", "question", "text", "label", "answerKey"], records)
        pairs = [{"text": text, "label": list(label)} for text, label in zip(arc.pop("text"), arc.pop("label"))]
        arc["choices"] = pa.array(pairs, choices)
        table(out / f"arc_{name}/ARC-{name.capitalize()}/test-00000-of-00001.parquet", arc)
    winogrande = columns(["sentence", "option1", "option2", "answer"], WINOGRANDE)
    path = out / "winogrande/validation.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [dict(zip(winogrande, row)) for row in zip(*winogrande.values())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    names = ["question", "distractor1", "distractor2", "distractor3", "correct_answer", "support"]
    table(out / "sciq/data/test-00000-of-00001.parquet", columns(names, SCIQ))
    for split in ["test", "dev"]:
        # Subjects one after another, as in the configuration `all`.
        rows = [row for subject in SUBJECTS for row in mmlu(subject, split)]
        part = columns(["question", "subject", "choices", "answer"], rows)
        table(out / f"mmlu/all/{split}-00000-of-00001.parquet", part)
    path = out / "lambada/test.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in LAMBADA))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
