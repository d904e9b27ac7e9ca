"""Training: the step, the loop around it, and a run from its options to its folder."""
