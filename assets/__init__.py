"""The asset graph. Each asset calls one stage of `delift_pipeline` and reports its result."""
