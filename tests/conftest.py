"""Settings that every test relies on; they must be in place before torch is first imported."""

import os
import signal

# Tests run in several processes on few cores: threads that spin for each other make them many times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.pop("RNN_LAB_KERNELS", None)
os.environ.pop("RNN_LAB_LOAD_PLUGINS", None)
os.environ.pop("RNN_LAB_PLUGINS_DIR", None)

# A shell starts what it puts in the background with SIGINT ignored, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
