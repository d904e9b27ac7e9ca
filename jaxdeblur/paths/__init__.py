"""Equation 1 run backwards: blur paths from neighbouring frames, and the frames without blur."""
