"""The environment in which notebooks run, whether to be stored or to be tested."""

import os

FIXED = {
    "OMP_NUM_THREADS": "1",
    "TQDM_DISABLE": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}


def kernel_environment(**extra: str) -> dict[str, str]:
    """Return this process's environment with one thread, silent bars, inline figures, seed 0."""
    kept = {k: v for k, v in os.environ.items() if k not in ("COURSE_SEED", "COURSE_CLAIMS")}
    return kept | FIXED | extra
