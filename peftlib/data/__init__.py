"""Data: the task table, where rows come from, tokenisation, and batches."""
