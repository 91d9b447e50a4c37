"""The catalog's tables and the documented views over them, as SQL."""

FORMAT = 1
"""Raised when a table or view changes; a catalog of another format is built again."""

# Every row's `source` is the folder it was read from, so the rows of one artifact can be replaced.
TABLES = {
    "versions": """
        source VARCHAR, version VARCHAR, dataset VARCHAR, content_hash VARCHAR, created VARCHAR,
        parents VARCHAR[], records UINTEGER, targets UINTEGER, heldout UINTEGER, new UINTEGER,
        model VARCHAR, template VARCHAR""",
    "records": """
        source VARCHAR, version VARCHAR, part VARCHAR, record_id VARCHAR, instruction VARCHAR,
        input VARCHAR, output VARCHAR, origin VARCHAR, task VARCHAR, copies UINTEGER,
        source_ids VARCHAR[]""",
    "picks": """
        source VARCHAR, record_id VARCHAR, source_id VARCHAR, selected BOOLEAN, rank UINTEGER,
        gain DOUBLE, trust DOUBLE, self_share DOUBLE, replayed BOOLEAN, near_duplicates UINTEGER,
        covers VARCHAR[], covered_by VARCHAR, coverage DOUBLE""",
    "trained": """
        source VARCHAR, record_id VARCHAR, through VARCHAR, rank UINTEGER, left_out VARCHAR""",
    "measured": """
        source VARCHAR, version VARCHAR, arm VARCHAR, stage VARCHAR, selector VARCHAR,
        metric VARCHAR, value DOUBLE, se DOUBLE, records UINTEGER, minus_random DOUBLE,
        minus_random_se DOUBLE, minus_initial DOUBLE, minus_initial_se DOUBLE,
        fingerprint VARCHAR""",
    "artifacts": """
        source VARCHAR, artifact VARCHAR, kind VARCHAR, version VARCHAR, arm VARCHAR,
        content_hash VARCHAR, created VARCHAR, fingerprint VARCHAR, dagster_run VARCHAR,
        mlflow_run VARCHAR, code_version VARCHAR, delift VARCHAR, git_commit VARCHAR,
        rebuild VARCHAR""",
    "edges": "source VARCHAR, made_of VARCHAR, hash VARCHAR",
    "kernel_ids": """
        source VARCHAR, block VARCHAR, side VARCHAR, number INTEGER, record_id VARCHAR""",
    "kernel_pairs": """
        source VARCHAR, block VARCHAR, target INTEGER, demonstration INTEGER, utility FLOAT,
        kl FLOAT""",
    "score_ids": "source VARCHAR, number INTEGER, record_id VARCHAR",
    "score_pairs": """
        source VARCHAR, target INTEGER, demonstration INTEGER, squared_distance FLOAT,
        sum_logprob FLOAT, tokens INTEGER""",
    "left_out": "source VARCHAR, pairs UBIGINT, why VARCHAR",
    "sources": "source VARCHAR, stamp VARCHAR",
}

VIEWS = {
    "versions": "SELECT * EXCLUDE (source) FROM stored.versions",
    "records": "SELECT * EXCLUDE (source) RENAME (origin AS source) FROM stored.records",
    "subsets": """
        SELECT split_part(p.source, '/', 2) AS version, split_part(p.source, '/', 3) AS arm,
            split_part(split_part(p.source, '/', 3), '.', 1) AS stage,
            p.record_id, p.source_id, p.rank, p.gain, p.trust, p.self_share, p.replayed,
            p.near_duplicates, len(p.covers) AS covers
        FROM stored.picks p WHERE p.selected""",
    "reasons": """
        SELECT split_part(p.source, '/', 2) AS version, split_part(p.source, '/', 3) AS arm,
            p.record_id, p.source_id, p.selected, p.rank, p.gain, p.trust,
            p.covered_by, p.coverage,
            CASE
                WHEN p.replayed THEN 'replayed from existing records'
                WHEN p.selected AND len(p.covers) > 0
                    THEN 'chosen, covers ' || len(p.covers) || ' records'
                WHEN p.selected THEN 'chosen'
                WHEN p.covered_by IS NOT NULL THEN 'dropped: ' || p.covered_by || ' covers it'
                ELSE 'dropped: beyond the budget, and no chosen record covers it'
            END AS reason
        FROM stored.picks p""",
    "trained_on": """
        SELECT split_part(p.source, '/', 2) AS version, split_part(p.source, '/', 3) AS arm,
            p.record_id, p.through, p.rank, p.left_out FROM stored.trained p""",
    "metrics": "SELECT * EXCLUDE (source) FROM stored.measured",
    "artifacts": "SELECT source AS path, * EXCLUDE (source) FROM stored.artifacts",
    "lineage": """
        SELECT a.artifact, a.kind, a.version, a.arm, e.made_of, e.hash, a.created, a.dagster_run,
            a.mlflow_run, a.git_commit
        FROM stored.edges e JOIN stored.artifacts a ON a.source = e.source""",
    "utilities": """
        SELECT split_part(p.source, '/', 2) AS version, split_part(p.source, '/', 3) AS fingerprint,
            p.block, t.record_id AS target, d.record_id AS demonstration, p.utility, p.kl
        FROM stored.kernel_pairs p
        JOIN stored.kernel_ids t ON t.source = p.source AND t.block = p.block
            AND t.side = 'rows' AND t.number = p.target
        JOIN stored.kernel_ids d ON d.source = p.source AND d.block = p.block
            AND d.side = 'columns' AND d.number = p.demonstration""",
    "scores": """
        SELECT split_part(p.source, '/', 2) AS fingerprint, t.record_id AS target,
            d.record_id AS demonstration, p.squared_distance, p.sum_logprob, p.tokens
        FROM stored.score_pairs p
        JOIN stored.score_ids t ON t.source = p.source AND t.number = p.target
        LEFT JOIN stored.score_ids d ON d.source = p.source AND d.number = p.demonstration""",
    "left_out": "SELECT * FROM stored.left_out",
}
