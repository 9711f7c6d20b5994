"""A function in a module that imports numpy and pandas, as most do."""

import time
from typing import Any

import numpy as np
import pandas as pd


def use_frames(job: Any) -> float:
    """Use both, and stay long enough that every worker gets its share."""
    frame = pd.DataFrame({"x": np.arange(100.0), "y": np.ones(100)})
    time.sleep(job["s"])
    return float(frame.groupby("y").x.sum().iloc[0])
