"""Executors carry trials; they decide nothing. Each runs `Job`s and passes their messages to the search loop."""

from dnas.executors.local import LocalExecutor
from dnas.executors.worker import Job, Message

__all__ = ["Job", "LocalExecutor", "Message"]
