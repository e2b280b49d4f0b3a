"""The one torch.library namespace, `pointlib::`, that every operator of this package is defined in."""

from __future__ import annotations

import torch

LIB = torch.library.Library("pointlib", "FRAGMENT")
