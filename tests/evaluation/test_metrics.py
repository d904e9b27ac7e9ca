"""PSNR, SSIM, flicker and every protocol against independently computed figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage, signal
from skimage import metrics as skimage_metrics
from skimage import registration

from jaxdeblur.errors import UserError
from jaxdeblur.evaluation.metrics import (
    MAX_PSNR,
    PROTOCOLS,
    Flicker,
    VideoScores,
    protocol,
    psnr,
    ssim,
    totals,
    whole_pixel_shift,
)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    """Returns a blurred, noisy colour picture and its smooth original; sides are odd and differ."""
    rng = np.random.default_rng(3)
    sharp = ndimage.gaussian_filter(rng.uniform(0, 255, (47, 61, 3)), (1.5, 1.5, 0))
    sharp = (sharp - sharp.min()) / np.ptp(sharp) * 255
    blurred = ndimage.uniform_filter(sharp, (1, 7, 1)) + rng.normal(0, 3, sharp.shape)
    return np.clip(blurred, 0, 255).astype(np.uint8), sharp.astype(np.uint8)


def grey(value: float, height: int = 12, width: int = 12) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


class TestPsnr:
    def test_by_hand(self):
        # Every pixel is off by 10: 20 log10(255 / 10).
        assert psnr(grey(110), grey(100)) == pytest.approx(28.1308036, abs=1e-6)
        # One of four pixels is off by 255: 10 log10(4).
        image = np.array([[0, 0], [0, 255]], np.uint8)
        assert psnr(image, np.zeros((2, 2), np.uint8)) == pytest.approx(6.0205999, abs=1e-6)

    def test_does_not_wrap_round(self):
        assert psnr(grey(0), grey(255)) == psnr(grey(255), grey(0)) == 0

    def test_identical_is_infinite(self, pair):
        assert psnr(pair[0], pair[0]) == math.inf

    def test_skimage(self, pair):
        expected = skimage_metrics.peak_signal_noise_ratio(pair[1], pair[0], data_range=255)
        assert psnr(*pair) == pytest.approx(expected, abs=1e-9)


class TestSsim:
    def test_by_hand(self):
        # Flat images have no structure term: (2 * 100 * 50 + c1) / (100^2 + 50^2 + c1).
        c1 = 2.55**2
        expected = (2 * 100 * 50 + c1) / (100**2 + 50**2 + c1)
        for kind in ("2-D", "3-D reflect", "3-D edge"):
            assert ssim(grey(100), grey(50), kind) == pytest.approx(expected, abs=1e-9)
            assert ssim(grey(100), grey(100), kind) == pytest.approx(1)

    def test_one_window_by_hand(self):
        # 11 x 11 pixels: one window, so SSIM is its formula with Gaussian-weighted moments.
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 256, (2, 11, 11)).astype(np.float64)
        line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
        weights = np.outer(line, line) / line.sum() ** 2
        ma, mb = (weights * a).sum(), (weights * b).sum()
        va, vb = (weights * (a - ma) ** 2).sum(), (weights * (b - mb) ** 2).sum()
        covariance = (weights * (a - ma) * (b - mb)).sum()
        c1, c2 = 2.55**2, 7.65**2
        expected = (2 * ma * mb + c1) * (2 * covariance + c2)
        expected /= (ma**2 + mb**2 + c1) * (va + vb + c2)
        assert ssim(a, b) == pytest.approx(expected, abs=1e-12)

    def test_2d_is_skimage(self, pair):
        expected = skimage_metrics.structural_similarity(
            *pair,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        )
        assert ssim(*pair) == pytest.approx(expected, abs=1e-9)

    def test_3d_reflect_is_scipy(self, pair):
        # As in Shift-Net's code: channels first, [0, 1], gaussian_filter over all three axes.
        a, b = (image.transpose(2, 0, 1).astype(np.float64) / 255 for image in pair)
        expected = formula(a, b, lambda x: ndimage.gaussian_filter(x, 1.5))
        assert ssim(*pair, "3-D reflect") == pytest.approx(expected, abs=1e-9)

    def test_3d_edge_is_a_full_3d_convolution(self, pair):
        # As in NAFNet's code: one 11 x 11 x 11 kernel, borders replicated.
        line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
        line /= line.sum()
        kernel = np.einsum("i,j,k->ijk", line, line, line)

        def smooth(x: np.ndarray) -> np.ndarray:
            return signal.convolve(np.pad(x, 5, mode="edge"), kernel, mode="valid", method="direct")

        a, b = (image[:20, :18].astype(np.float64) / 255 for image in pair)
        expected = formula(a, b, smooth)
        assert ssim(pair[0][:20, :18], pair[1][:20, :18], "3-D edge") == pytest.approx(expected)

    def test_the_kinds_do_not_compare(self, pair):
        assert ssim(*pair, "3-D edge") > ssim(*pair) + 0.005

    def test_smaller_than_the_window(self):
        with pytest.raises(ValueError, match="11 x 11"):
            ssim(grey(0, 10, 20), grey(0, 10, 20))


def formula(a: np.ndarray, b: np.ndarray, smooth) -> float:
    """Computes SSIM by the two products of the paper, for images in [0, 1]."""
    ma, mb = smooth(a), smooth(b)
    va, vb, cov = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
    top = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4)
    return float((top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))).mean())


def flicker(video: np.ndarray, reference: np.ndarray) -> float:
    found = Flicker()
    for frame, sharp in zip(video, reference, strict=True):
        found.add(frame, sharp)
    return found.rms()


class TestFlicker:
    def test_by_hand(self):
        sharp = np.stack([grey(100), grey(120), grey(100)])
        assert flicker(sharp, sharp) == 0
        # A constant offset does not flicker; an offset that goes 0, 6, 0 does, by 6.
        assert flicker(sharp + np.uint8(9), sharp) == 0
        flickering = np.stack([grey(100), grey(126), grey(100)])
        assert flicker(flickering, sharp) == pytest.approx(6)
        # The error goes 0, 3, 3, with changes of 3 and 0.
        settling = np.stack([grey(100), grey(123), grey(103)])
        assert flicker(settling, sharp) == pytest.approx(math.sqrt((9 + 0) / 2))

    def test_fresh_noise_costs_its_deviation_times_root_two(self):
        noise = np.random.default_rng(0).normal(0, 8, (20, 40, 40, 3))
        sharp = np.full(noise.shape, 128, np.uint8)
        noisy = np.clip(sharp + noise, 0, 255).round().astype(np.uint8)
        assert flicker(noisy, sharp) == pytest.approx(8 * math.sqrt(2), rel=0.01)

    def test_one_frame(self):
        assert flicker(grey(1)[None], grey(9)[None]) == 0


class TestProtocols:
    def test_all_of_them_are_there(self):
        names = "jaxdeblur basicsr cdvd-tsp estrnn deepdeblur shift-net nafnet pvdnet"
        assert list(PROTOCOLS) == names.split()
        with pytest.raises(UserError, match="--protocol=matlab: must be one of jaxdeblur, basicsr"):
            protocol("matlab")

    def test_quantised(self):
        # In 16 bits, 257 steps are one grey level.
        values = np.array([0, 256, 257, 257 * 99 + 200, 65535], np.uint16)
        frame = np.broadcast_to(values[:, None, None], (5, 1, 3))
        truncated = PROTOCOLS["estrnn"].quantised(frame)
        assert truncated.dtype == np.uint8
        assert truncated[:, 0, 0].tolist() == [0, 0, 1, 99, 255]
        floats = PROTOCOLS["shift-net"].quantised(frame)[:, 0, 0]
        assert floats == pytest.approx([0, 256 / 257, 1, 99 + 200 / 257, 255])
        assert [name for name, each in PROTOCOLS.items() if each.quantise != "round"] == (
            ["estrnn", "shift-net"]
        )

    def test_rounded_frames_are_scored_as_they_are(self, pair):
        for name in PROTOCOLS.keys() - {"estrnn", "shift-net"}:
            assert PROTOCOLS[name].quantised(pair[0]) is pair[0]

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("jaxdeblur", [0, 1, 2, 3, 4, 5]),
            ("basicsr", [0, 1, 2, 3, 4, 5]),
            ("cdvd-tsp", [2, 3]),
            ("estrnn", [2, 3]),
            ("deepdeblur", [0, 1, 2, 3, 4, 5]),
            ("shift-net", [2, 3]),
            ("nafnet", [0, 1, 2, 3, 4, 5]),
            ("pvdnet", [1, 2, 3, 4, 5]),
        ],
    )
    def test_scored_frames(self, name, expected):
        assert list(PROTOCOLS[name].scored(6)) == expected

    def test_a_video_too_short_has_no_scored_frame(self):
        assert not PROTOCOLS["cdvd-tsp"].scored(4)
        assert not PROTOCOLS["cdvd-tsp"].scored(1)

    def test_means(self):
        videos = [
            VideoScores("walk", 8, 8, len(levels), 0, *[levels] * 4, 0.0, 0.0, None)
            for levels in ((30.0, 32.0), (20.0,))
        ]
        assert totals(videos, "frames")["psnr"] == pytest.approx(82 / 3)
        per_video = {"jaxdeblur", "basicsr"}
        for name, each in PROTOCOLS.items():
            expected = 25.5 if name in per_video else 82 / 3
            assert totals(videos, each.mean)["psnr"] == pytest.approx(expected), name

    @pytest.mark.parametrize("name", ["jaxdeblur", "basicsr", "estrnn", "deepdeblur"])
    def test_plain_protocols(self, name, pair):
        assert PROTOCOLS[name].score(*pair) == pytest.approx(reference_scores(*pair))

    def test_cdvd_tsp(self, pair):
        a, b = (image[4:-4, 4:-4] for image in pair)
        assert PROTOCOLS["cdvd-tsp"].score(*pair) == pytest.approx(reference_scores(a, b))
        # Pixels in the border do not count.
        spoilt = pair[0].copy()
        spoilt[:4] = spoilt[-4:] = spoilt[:, :4] = spoilt[:, -4:] = 0
        assert PROTOCOLS["cdvd-tsp"].score(spoilt, pair[1]) == PROTOCOLS["cdvd-tsp"].score(*pair)

    def test_shift_net(self, pair):
        noisy = pair[0].astype(np.float32) + np.float32(0.25)
        found = PROTOCOLS["shift-net"].score(noisy, pair[1])
        a, b = (image.transpose(2, 0, 1).astype(np.float64) / 255 for image in (noisy, pair[1]))
        expected = formula(a, b, lambda x: ndimage.gaussian_filter(x, 1.5))
        level = 10 * math.log10(1 / np.mean((a - b) ** 2))
        assert found == pytest.approx((level, expected), abs=1e-9)

    def test_nafnet(self, pair):
        level, similarity = PROTOCOLS["nafnet"].score(*pair)
        assert level == pytest.approx(reference_scores(*pair)[0])
        assert similarity == ssim(*pair, "3-D edge")

    def test_an_identical_frame_counts_finitely(self, pair):
        for name, each in PROTOCOLS.items():
            level, similarity = each.score(pair[1], pair[1])
            assert level == MAX_PSNR, name
            assert similarity == pytest.approx(1), name

    def test_frames_too_small(self):
        with pytest.raises(
            UserError, match=r"18x40 pixels are too small for protocol cdvd-tsp: .* 19 on"
        ):
            PROTOCOLS["cdvd-tsp"].check_size(40, 18, "frames")
        PROTOCOLS["cdvd-tsp"].check_size(40, 19, "frames")


class TestPvdnet:
    pvdnet = PROTOCOLS["pvdnet"]

    @pytest.mark.parametrize("move", [(0, 0), (2, 0), (0, -3), (-1, 4), (3, 5)])
    def test_the_shift_is_found(self, move):
        rng = np.random.default_rng(1)
        scene = ndimage.gaussian_filter(rng.uniform(0, 255, (80, 90)), 1)
        image = scene[10:70, 10:80]
        reference = scene[10 - move[0] : 70 - move[0], 10 - move[1] : 80 - move[1]]
        assert whole_pixel_shift(image, reference) == move
        found, _, _ = registration.phase_cross_correlation(reference, image, normalization=None)
        assert tuple(found.astype(int)) == move

    def test_brightness_and_shift_cost_little(self):
        rng = np.random.default_rng(2)
        scene = ndimage.gaussian_filter(rng.uniform(0, 200, (90, 100, 3)), (1, 1, 0))
        sharp = scene[10:80, 10:90].round().astype(np.uint8)
        moved = scene[12:82, 9:89].round().astype(np.uint8)
        assert psnr(moved, sharp) < 35
        # The intensity is matched before the shift, while the pictures are not yet aligned.
        assert self.pvdnet.score(moved, sharp)[0] > 42
        dimmed = (sharp * 0.9).round().astype(np.uint8)
        assert psnr(dimmed, sharp) < 30
        assert self.pvdnet.score(dimmed, sharp)[0] > 55

    def test_against_a_computation_of_its_own(self, pair):
        # Zero-filled shift by scipy, luminance by einsum, scores by scikit-image.
        image = np.roll(pair[0], (1, -2), (0, 1))
        a, b = (x[16:-16, 16:-16].astype(np.float64) for x in (image, pair[1]))
        a = a * (a.ravel() @ b.ravel()) / (a.ravel() @ a.ravel())
        shift, _, _ = registration.phase_cross_correlation(
            b.mean(-1), a.mean(-1), normalization=None
        )
        assert tuple(shift) == (-1, 2)
        y = np.array([0.299, 0.587, 0.114])
        a = ndimage.shift(np.einsum("hwc,c->hw", a, y), shift, order=0, cval=0)
        mask = ndimage.shift(np.ones(a.shape), shift, order=0, cval=0)
        b = np.einsum("hwc,c->hw", b, y) * mask
        level = skimage_metrics.peak_signal_noise_ratio(b, a, data_range=255)
        similarity = skimage_metrics.structural_similarity(
            a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        assert self.pvdnet.score(image, pair[1]) == pytest.approx((level, similarity), abs=1e-9)

    def test_black(self):
        level, _ = self.pvdnet.score(grey(0, 50, 50), grey(10, 50, 50))
        assert level == pytest.approx(20 * math.log10(255 / 10), abs=1e-6)


def reference_scores(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Computes PSNR and 2-D SSIM by scikit-image."""
    return (
        skimage_metrics.peak_signal_noise_ratio(b, a, data_range=255),
        skimage_metrics.structural_similarity(
            a,
            b,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
        ),
    )
