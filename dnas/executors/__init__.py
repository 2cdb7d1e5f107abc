"""Executors run jobs and forward their messages to the run loop, which makes all decisions."""
