"""
Sizes as people write and read them.
"""

UNITS = {"t": 1024**4, "g": 1024**3, "m": 1024**2, "k": 1024}


def exact(count):
    """
    Return bytes without loss, the way the pillar has them: ``512m``, ``1100m``.
    """
    for unit, factor in UNITS.items():
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return str(count)


def rounded(count):
    """
    Return bytes to three digits: ``1.5g``.
    """
    for unit, factor in UNITS.items():
        if count >= factor:
            return f"{count / factor:.3g}{unit}"
    return f"{count:.0f}"
