"""Imports of the server that training processes are forked from.

The imports create a million objects that stay. They are exempt from garbage collection, which would go through all of
them several times here and in each process. The server ends without freeing them one by one.
"""

import atexit
import gc
import os
from importlib import import_module

atexit.register(os._exit, 0)
gc.disable()
import_module("dnas.executors.worker")
import_module("torch._dynamo")  # imported by torch's optimisers, so every training process needs it
gc.freeze()
gc.enable()
