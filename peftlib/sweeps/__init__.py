"""Run a W&B sweep's YAML locally: the search, and its runs as subprocesses."""
