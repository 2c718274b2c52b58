"""Finished runs side by side: what belongs together, what may be claimed, and a report that can be handed around."""
