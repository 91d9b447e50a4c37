"""Choose records of a file by the coverage of their texts; no language model is loaded."""

import sys
from pathlib import Path

from delift_pipeline.records.read import read_records
from delift_pipeline.selection.run import select
from delift_pipeline.selection.selector import SelectionInputs

file = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/frozen/pool.jsonl")
pool = read_records(file).frame
inputs = SelectionInputs("instruction_tuning", pool)
selection = select(inputs, "delift_se", budget=5, seed=0, options={"embedder": "tfidf"})
texts = dict(zip(pool["record_id"], pool["instruction"], strict=True))
for rank, record in enumerate(selection.ranking, start=1):
    print(f"{rank}. {texts[record][:70]}")
