"""Ablation studies: variants of a base network, trained in pairs, and what may be concluded from them."""
