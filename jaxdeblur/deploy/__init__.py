"""Export of trained networks for programs without JAX: their forms and files."""
