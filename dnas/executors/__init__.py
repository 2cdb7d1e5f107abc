"""Executors carry trials; they decide nothing. Each runs `Job`s and passes their messages to the search loop."""
