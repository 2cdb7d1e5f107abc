"""Batches: lists of training runs that are known beforehand."""
