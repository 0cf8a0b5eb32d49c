"""Scripts that make the golden files need the `parity` extra: pytest leaves them be."""

collect_ignore_glob = ["golden/*"]
