"""Restoring: streams and clips, tiles, the threads around them, and what deblur.py does."""
