"""A trained network for programs without JAX: its forms, and the files that hold them."""
