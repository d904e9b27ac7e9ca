"""Trained weights: those that ship, as safetensors files beside this one, loading and saving."""
