"""Videos, images and raw pipes in and out, in the arrays that files hold."""
