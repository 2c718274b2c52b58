"""How good it is: predictions on a split, each example once, and the metrics over them."""
