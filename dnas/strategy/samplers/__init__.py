"""Samplers. Each is a function of the problem, the earlier trials and a random generator (`problem.Sampler`)."""
