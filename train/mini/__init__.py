"""The mini world: emoji scenes with a known truth, and the models trained on them. No ranking needs anything of it."""
