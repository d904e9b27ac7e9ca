"""Restoration of streams and clips: tiling, threads, and the work of deblur.py."""
