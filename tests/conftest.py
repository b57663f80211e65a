"""Set before torch, Triton or a hub client is imported by any test."""

import os

# Tests are small: one thread each is faster than two that wait for each other, and gives the same sums every time.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A test that needs the network is a mistake; this makes it fail at once instead of after the client's retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
