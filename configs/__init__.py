"""Training configs, one file per run."""
