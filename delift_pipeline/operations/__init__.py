"""Looking after a home: the catalog and its queries, forgetting, care, and cost before work."""
