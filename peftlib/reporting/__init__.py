"""Comparison of finished runs: which belong together, which differences may be claimed, and a report to share."""
