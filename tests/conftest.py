"""One quiet thread for every test process: the suite shares few cores, and spinning threads would eat them."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
