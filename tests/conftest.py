"""What holds for all tests."""

import os

# No test may reach for a model hub, nor behave differently where one could be reached.
os.environ["HF_HUB_OFFLINE"] = "1"
# Set before torch is imported: on tensors as small as the tests' a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
