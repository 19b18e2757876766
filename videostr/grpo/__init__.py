"""Group-relative policy optimisation in pure torch: advantages, group packing, log-probabilities, loss."""
