"""Operations on a home: catalog and queries, comparing, forgetting, cleaning, doctor and cost."""
