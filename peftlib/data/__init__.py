"""What it trains on: the table of tasks, where their rows come from, tokens, and batches."""
