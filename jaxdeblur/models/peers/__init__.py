"""The systems that the attention paper's Table 1 compares with, one file each.

Each is exactly the network of its reference code: with the reference's weights it gives the
reference's output. ``jaxdeblur convert`` converts such weights. docs/peers.md
describes the systems and what differs between paper, code and re-implementations.
"""
