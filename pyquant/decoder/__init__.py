# SPDX-License-Identifier: Apache-2.0
"""What a decoder-only language model needs, whatever its family: layers, masks, the KV cache, graphs, bundle, host.

It owns what families share, with data per layer (`LayerKind`). What one family does differently is models/<family>/.
"""

from __future__ import annotations
