"""What the target `reference` is made of."""
