"""The forms of utility, by name."""

from typing import Literal

UtilityForm = Literal["distance", "kl", "kl_mean"]
