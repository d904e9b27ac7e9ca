"""The systems that the attention paper's Table 1 compares with, one file each.

Each is the network of its reference code, exactly: with the reference's weights it gives the
reference's output. ``python -m jaxdeblur.weights.convert`` brings such weights in, and
docs/peers.md says what each system is and what differs between paper, code and re-implementations.
"""
