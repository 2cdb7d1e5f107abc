"""Samplers: each a function of the problem, of what it was told, and of its random generator (`problem.Sampler`)."""
