"""Training: from measured cases to a bundle."""
