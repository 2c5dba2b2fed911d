"""SQAIR and R-SQAIR: the model, its training, checkpoints and runs. README.md says where to begin.

Import it before TensorFlow (see below).
"""

import os

# TensorFlow reads it as it is imported. By itself it takes oneDNN's kernels on x86 processors with AVX-512 VNNI only,
# but they are quicker on others too (docs/performance.md).
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
