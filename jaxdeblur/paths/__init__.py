"""Inverts equation 1: fits blur paths to neighbouring frames and removes the blur."""
