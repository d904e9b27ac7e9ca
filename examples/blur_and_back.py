"""Equation 1 forwards and backwards: blurs a photograph along a drawn path, and removes the blur.

    python examples/blur_and_back.py

Writes blur_and_back.png: sharp, blurred, restored. Ends with both PSNRs. In Fourier space the blur
is a product with the path's transfer function (jaxdeblur/paths/path.py), and Wiener's filter is its
regularised inverse.
"""

import numpy as np
from skimage import data

from jaxdeblur.evaluation.metrics import psnr
from jaxdeblur.paths.path import frequencies, otf
from jaxdeblur.video.image_file import write_png

NOISE = 2e-3  # the noise's power over the image's, at every frequency

# The path that you draw: (y, x) in pixels, evenly spaced in time while the shutter is open.
drawn = np.array([(0, 0), (2, 3), (3, 7), (2, 10), (-1, 12)], np.float32)
times = np.linspace(0, len(drawn) - 1, 65)
path = np.stack([np.interp(times, np.arange(len(drawn)), axis) for axis in drawn.T], 1)
path = (path - path.mean(0)).astype(np.float32)

size = 256
sharp = data.astronaut()[:size, 96 : 96 + size]
weights = np.full((1, len(path)), 1 / len(path), np.float32)
real, imaginary = np.asarray(otf(path, weights, *frequencies(size)))[0]
kernel = real + 1j * imaginary


def filtered(image: np.ndarray, factor: np.ndarray) -> np.ndarray:
    """Multiplies the spectrum of each channel."""
    spectrum = np.fft.rfft2(image / 255, axes=(0, 1)) * factor[..., None]
    values = np.fft.irfft2(spectrum, s=image.shape[:2], axes=(0, 1))
    return (255 * np.clip(values, 0, 1)).round().astype(np.uint8)


blurred = filtered(sharp, kernel)
restored = filtered(blurred, np.conj(kernel) / (np.abs(kernel) ** 2 + NOISE))
write_png("blur_and_back.png", np.hstack([sharp, blurred, restored]))
print(f"{psnr(blurred, sharp):.1f} dB blurred, {psnr(restored, sharp):.1f} dB restored")
