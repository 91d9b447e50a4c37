"""Show what made an adapter: its versions, its records, its code and what has changed since."""

import sys
from pathlib import Path

from delift_pipeline.core.home import Home
from delift_pipeline.lineage.adapter import adapter_lineage

folder, version, arm = sys.argv[1:] or ("delift_demo", "demo-v1", "instruction_tuning.random")
made = adapter_lineage(Home.at(Path(folder)), version, arm)
print(f"adapter {made.adapter['name']}, content {made.adapter['content_hash'][:12]}")
print("versions:", ", ".join(one["version"] for one in made.data))
print("records:", "lost" if made.records is None else len(made.records))
for name, code in made.code.items():
    print(f"code of {name}: {code['code_version']}")
for note in made.notes:
    print("note:", note)
