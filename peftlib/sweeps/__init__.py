"""A W&B sweep's YAML, run on one's own machine: what to try, in which order, in processes of its own."""
