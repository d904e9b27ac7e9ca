"""Reads and writes videos, images and raw pipes, as the arrays that their files hold."""
