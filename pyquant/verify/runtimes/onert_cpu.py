# SPDX-License-Identifier: Apache-2.0
"""Which instructions the onert wheel needs and this CPU lacks.

onert 0.1.0's x86-64 wheel contains ggml compiled for AVX-512 and AVX-VNNI (its `ggml_graph_plan` and
`ggml_vec_dot_q4_0_q8_0` use them), without a check at run time: block formats end the process with SIGILL elsewhere.
"""

from __future__ import annotations

import platform
from pathlib import Path

NEEDED = ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx_vnni")  # named as in /proc/cpuinfo
BLOCK_DTYPES = ("ggml_q4_0", "ggml_q8_0")


def lacking(cpuinfo: str | None = None) -> tuple[str, ...]:
    """Of NEEDED, what this CPU does not have; () where that is not known (another architecture, no /proc/cpuinfo).

    `cpuinfo` is the text of another machine's /proc/cpuinfo.
    """
    if cpuinfo is None:
        try:
            cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ()
        if platform.machine() not in ("x86_64", "AMD64"):
            return ()
    line = next((line for line in cpuinfo.splitlines() if line.split(":")[0].strip() == "flags"), None)
    if line is None:
        return ()
    flags = set(line.partition(":")[2].split())
    return tuple(name for name in NEEDED if name not in flags)


def why_no_blocks(missing: tuple[str, ...] | None = None) -> str | None:
    """Why onert cannot run block formats (Q4_0, Q8_0) here, in a sentence; None where it can."""
    missing = lacking() if missing is None else missing
    if not missing:
        return None
    return (
        "onert 0.1.0 runs block formats (Q4_0, Q8_0) with AVX-512 and AVX-VNNI instructions, and this CPU lacks "
        f"{', '.join(missing)}"
    )
