"""A page on this machine: drop a video or photographs, compare before and after, download."""
