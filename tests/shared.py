"""Where models and texts lie that are not part of the repository."""

import os
from pathlib import Path

SHARED = Path(os.environ.get("SAE_LAB_SHARED", Path(__file__).parents[2] / "shared"))
