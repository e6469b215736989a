"""What every test shares: fixed seeds, few threads, no network, no display."""

from __future__ import annotations

import os
import random
import signal

# Before torch, matplotlib or a hub client is imported by anybody.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("COLUMNS", "120")

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anybody imports a kernel
THREADS = min(2, len(os.sched_getaffinity(0)))
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", THREADS)))

# derandomize: the same examples on every machine; deadline: a shared CPU is no reason to fail.
settings.register_profile(
    "thinkfast",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=50,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("thinkfast")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (libraries under test may still draw from the old global generator)
    torch.manual_seed(0)


def pytest_configure() -> None:
    """Hear Ctrl-C even where the suite was started in the background: a shell then makes its jobs deaf to it, and
    the processes that tests interrupt would inherit that.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
