"""Ask a home with SQL: which tasks do the arms choose most often?"""

import sys
from pathlib import Path

from delift_pipeline.core.home import Home
from delift_pipeline.operations.query import run_query

SQL = """
    SELECT s.version, s.arm, r.task, count(*) AS chosen
    FROM subsets s JOIN records r USING (version, record_id)
    GROUP BY ALL ORDER BY chosen DESC, s.version, s.arm, r.task LIMIT 10
"""
home = Home.at(Path(sys.argv[1] if len(sys.argv) > 1 else "delift_demo"))
answer = run_query(home, SQL)
print("\t".join(answer.columns))
for row in answer.rows:
    print("\t".join(str(value) for value in row))
