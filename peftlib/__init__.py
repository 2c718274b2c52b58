"""The nouns of the suite: what trains, on what, how, and how good it is. See the tree in README.md."""

__version__ = "0.1.0"
