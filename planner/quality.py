"""The quality floor: what was measured on the model at hand, else what bits usually are worth."""

from __future__ import annotations

from profiles.numerics import WeightScheme
from profiles.quality import Quality

MOST_KL = {8: 0.005, 4: 0.05}
"""Nats that a form may lose on average under a floor of so many bits: the bounds that int8 and
int4 are held to (docs/performance.md, "Quality")."""


def most_kl(least_bits: int) -> float | None:
    """What a floor allows in nats; None where only weights as they are stored will do."""
    if least_bits > max(MOST_KL):
        return None
    return next((most for bits, most in MOST_KL.items() if least_bits >= bits), MOST_KL[4])


def bits_worth(kl: float) -> int | None:
    """The highest floor that a measured divergence stays within."""
    return next((bits for bits, most in MOST_KL.items() if kl <= most), None)


def why_below_floor(scheme: WeightScheme, measured: Quality | None, least_bits: int) -> str | None:
    """Why weights of a scheme are not good enough; None when they are.

    Measured on this very model counts for more than the number of bits.
    """
    if scheme.name == "none":
        return None
    most = most_kl(least_bits)
    if measured is not None and most is not None:
        return None if measured.mean_kl <= most else _loses(measured, most, least_bits)
    if scheme.quality_bits < least_bits:
        return f"{scheme.quality_bits} bits, below the quality floor of {least_bits}"
    return None


def why_form_below_floor(measured: Quality | None, least_bits: int) -> str | None:
    """The same of weights and KV cache together, where they were measured together."""
    most = most_kl(least_bits)
    if measured is None or most is None or measured.mean_kl <= most:
        return None
    return _loses(measured, most, least_bits)


def _loses(measured: Quality, most: float, least_bits: int) -> str:
    return (
        f"measured on this model: a KL divergence of {measured.mean_kl:.2g} nats, above the "
        f"{most:g} that a floor of {least_bits} bits allows"
    )


def in_words(name: str, measured: Quality) -> str:
    """What a plan says of the quality of what it chose."""
    return (
        f"measured on this model: {name} has a KL divergence of {measured.mean_kl:.2g} nats from "
        f"full precision and prefers the same token at {measured.same_token:.1%} of "
        f"{measured.num_positions} positions"
    )
