"""Ablation studies: variants of a base network, trained in pairs of equal seeds, and the conclusions they allow."""
