"""Trained weights: loading, saving, and those that ship as safetensors files beside this one."""
