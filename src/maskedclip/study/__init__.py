"""Experiments: a grid of recipes, text fractions, seeds and sizes, run and told as a whole."""
