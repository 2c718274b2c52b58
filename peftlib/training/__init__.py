"""Training: the custom loop on Accelerate, and its parts."""
