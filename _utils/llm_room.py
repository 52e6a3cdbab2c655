"""
Whether a host's memory allows two generations of a service at once, as its replacement takes them.
"""

from llm_size import rounded


def lacking(spec, limits):
    """
    Return how many bytes of memory are wanting for one more container of ``spec`` beside all that
    runs by then; 0 when there is room for it, or when its room is of no interest.

    spec
        A completed spec. Its ``room`` says what services may have of the host's memory, and what
        those take that come before it.
    limits
        What the running containers of each service may take, ``{service: bytes}``.
    """
    room = spec["room"]
    if room is None:
        return 0
    return max(0, sum((limits | room["taken"]).values()) + spec["memory"] - room["memory"])


def words(lacking):
    """
    Return in words that ``lacking`` bytes are wanting.
    """
    return f"memory lacks {rounded(lacking)} for both at once"


REMEDY = "lower limits in pillar/environments, or let it be stopped first (when_tight: stop-first)"


def refusal(spec, lacking):
    """
    Return why the service of ``spec`` is not replaced, and what may be done.
    """
    return f"{spec['service']} cannot be replaced without a gap: {words(lacking)}; {REMEDY}"
