"""Restores photographs, or, without any, one that is blurred here, so that the gain is known.

    python examples/photographs.py [PHOTOGRAPH ...]

Writes before_after.png, and ends with the gain in dB where the sharp photograph is known.
"""

import sys

import numpy as np
from PIL import Image
from skimage import data

from jaxdeblur import Deblurrer
from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.video.image_file import read_image, write_png

deblurrer = Deblurrer("strcnn_dtb_photo_paths")  # for single images
for name in sys.argv[1:]:
    photograph = read_image(name)
    restored = deblurrer(photograph[None])[0]
    write_png("before_after.png", np.hstack([photograph, restored]))
    changed = np.abs(restored.astype(int) - photograph).mean()
    print(f"{name}: before_after.png; {changed:.2f} grey levels of change on average")

if not sys.argv[1:]:
    sharp = data.astronaut()[:256, 96:352]
    # A hand that shakes while the shutter is open: the mean of moved images (eq. 1).
    shake = [(0, 0), (0, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
    moved = [np.roll(sharp, step, axis=(0, 1)) for step in shake]
    blurred = np.mean(moved, axis=0).round().astype(np.uint8)
    restored = deblurrer(blurred[None])[0]
    middle = np.roll(sharp, shake[3], axis=(0, 1))  # where the network puts the image
    write_png("before_after.png", np.hstack([blurred, restored]))
    gain = psnr(restored, middle) - psnr(blurred, middle)
    print(f"{gain:+.2f} dB; before_after.png")
    Image.open("before_after.png").verify()
