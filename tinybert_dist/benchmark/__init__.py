"""Measures the product itself on the machine at hand: how fast, how near the floor, where the time goes."""
