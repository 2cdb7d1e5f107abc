"""Ablation studies: variants of a base network, trained in pairs of equal seeds, and their statistical comparison."""
