"""Which sizes of works may share a tick: each function maps a size to its class, the largest size in it."""


def like_length(size: int) -> int:
    """Size classes that keep padding below a fifth: sizes are rounded up to three significant bits."""
    shift = max(0, size.bit_length() - 3)
    return -(-size >> shift) << shift


def same_length(size: int) -> int:
    """Size classes of an artifact without ``lengths``: equal sizes only."""
    return size
