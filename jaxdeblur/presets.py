"""Every named configuration: ``--model=`` picks one, and each field of it is an option."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxdeblur.data.config import DataConfig
from jaxdeblur.errors import UserError
from jaxdeblur.models.fsta_config import FSTA, FSTA_CONCAT, FSTA_LIVE, FSTA_SMALL
from jaxdeblur.models.peers.dbn import DbnConfig
from jaxdeblur.models.peers.edvr import EDVR_L, EDVR_M, EdvrConfig
from jaxdeblur.models.peers.ifi_rnn import IfiRnnConfig
from jaxdeblur.models.peers.rdn import RdnConfig
from jaxdeblur.models.peers.srn import SrnConfig
from jaxdeblur.models.peers.stfan import StfanConfig
from jaxdeblur.models.strcnn import StrcnnConfig
from jaxdeblur.training.step import TrainingConfig


@dataclasses.dataclass(frozen=True)
class Preset:
    """A network, how it is trained, and on what."""

    about: str
    """What it is for, as ``train.py --help`` lists it."""
    network: Any
    training: TrainingConfig
    data: DataConfig
    expect: str = ""
    """On what hardware it trains, how long, and what it then gains; empty where nobody knows."""
    on_cores: str | None = None
    """The preset to take on a machine without a GPU, where this one's training takes days."""

    def described(self, name: str) -> list[str]:
        """What it is, the command that trains it, and what to expect, as paragraphs."""
        hardware = "One GPU." if self.on_cores else "Two CPU cores."
        unknown = f"{hardware} Never trained here: hours and result are not known."
        return [self.about, f"python train.py --model={name}", self.expect or unknown]


# docs/lab/scaling.md has the arithmetic.
_CALCULATED = (
    "Never trained here: 2 hours on an H200 and 7 on an A100 by calculation, the result unknown."
)

# All 22 videos train, none is held out, as rendered scenes validate, and no clip is drawn again.
# --data=FOLDER says where GOPRO lies.
_GOPRO = DataConfig(
    data=("gopro:GOPRO_Large",), variant="blur", least_blur=0.0, validate_on="rendered:wide"
)
_GOPRO_FRAMES = 2103  # that train

_WIDE = DataConfig(scenes="wide")
_NARROW = DataConfig(scenes="narrow")

# 13-frame clips of 128x128 pixels, 8 at a time, MSE and Adam at 1e-4: as we remember the paper,
# which was not checked, since our text of it ends before. It regularises, how strongly is not
# known: no decay here (docs/lab/papers.md has the table of what is the papers' and what is ours).
_PAPER = TrainingConfig(
    steps=400_000,
    batch_size=8,
    frames=13,
    crop=128,
    optimizer="adam",
    learning_rate=1e-4,
    loss="mse",
    recompute=True,  # 3 GB on two cores instead of 7; a GPU of 16 GB does without
    validate_every=5000,
    save_every=1000,
)

# The attention paper trains on 256x256 patches, 8 at a time, with Adam at 1e-4, halved every 200
# epochs; an epoch of GOPRO is a clip for each of its 2103 frames. Its loss and clip length are not
# known.
_ATTENTION_PAPER = TrainingConfig(
    steps=300_000,
    batch_size=8,
    frames=5,
    crop=256,
    optimizer="adam",
    learning_rate=1e-4,
    schedule="halve",
    halve_every=200 * _GOPRO_FRAMES,
    loss="charbonnier",
    recompute=True,
    validate_every=5000,
    save_every=1000,
)

# Two cores: short clips, small crops, Muon, which learns about twice as fast as Adam here.
_TWO_CORES = TrainingConfig(
    steps=3000,
    batch_size=2,
    frames=4,
    crop=96,
    optimizer="muon",
    learning_rate=1e-3,
    beta2=0.99,
    loss="charbonnier",
    validate_every=500,
    save_every=500,
)

# SRN's: 4000 epochs of 131 batches on single pictures, MSE at three sizes.
_SRN = TrainingConfig(
    steps=524_000,
    batch_size=16,
    frames=1,
    crop=256,
    learning_rate=1e-4,
    warmup=0,
    loss="mse",
    validate_every=5000,
)

# EDVR's, for super-resolution.
_EDVR = TrainingConfig(
    steps=600_000,
    batch_size=32,
    frames=5,
    crop=256,
    learning_rate=4e-4,
    beta2=0.99,
    loss="charbonnier",
    average=0.999,
    validate_every=5000,
)

# SimDeblur's for its DBN, with a cosine for its steps.
_SIMDEBLUR = TrainingConfig(
    steps=300_000,
    batch_size=8,
    frames=5,
    crop=256,
    learning_rate=2e-4,
    beta2=0.99,
    loss="charbonnier",
    validate_every=5000,
)

# STRCNN+DTB for two cores: no features at full size, a global residual.
_SMALL = StrcnnConfig(width=24, blocks=2, head_width=0, residual=True, leak=0.1)

PRESETS: dict[str, Preset] = {
    "strcnn": Preset(
        about="STRCNN without blending, the paper's baseline.",
        expect=f"One GPU of 16 GB. {_CALCULATED}",
        network=StrcnnConfig(blending="none"),
        training=_PAPER,
        data=_WIDE,
        on_cores="strcnn_dtb_small",
    ),
    "strcnn_dtb": Preset(
        about="STRCNN+DTB, the paper's network (1.15 M parameters).",
        expect=f"One GPU of 16 GB. {_CALCULATED}",
        network=StrcnnConfig(),
        training=_PAPER,
        data=_WIDE,
        on_cores="strcnn_dtb_small",
    ),
    "strcnn_dtb_small": Preset(
        about="STRCNN+DTB at width 24 with 2+2 blocks (87 k parameters), for small motion.",
        expect="Two CPU cores, about 10 minutes for its 3,000 steps. The 2,000 of make demo "
        "gain +1.29 dB on rendered test scenes, +0.98 on the worst. An hour of one core on small "
        "and large motion gained +1.40 dB on real video of 7 frames averaged (docs/results.md).",
        network=_SMALL,
        training=_TWO_CORES,
        data=_NARROW,
    ),
    "strcnn_dtb_choice": Preset(
        about="STRCNN+DTB at width 32 with 4+4 blocks, the same at four sizes side by side, and "
        "gates that choose between them in every 16 x 16 pixels (363 k parameters), for blur of "
        "up to 40 pixels.",
        expect="Two CPU cores. Never trained in one go: the weights that ship came from eight "
        "stages and fitted gates, about fifteen core-hours, and gain 1.3 to 4.3 dB "
        "(docs/lab/recipe.md).",
        network=dataclasses.replace(_SMALL, width=32, blocks=4, scales=(8, 4, 2, 1)),
        training=dataclasses.replace(
            _TWO_CORES,
            steps=2400,
            batch_size=1,
            crop=256,
            loss="log_mse",
            average=0.998,
        ),
        data=DataConfig(scenes="handheld", least_blur=1.0, keep_still=0.2),
    ),
    "strcnn_dtb_paths": Preset(
        about="STRCNN+DTB on what blur paths tell of each frame (88 k parameters): it takes the "
        "deconvolved frame where it is right, and mends it. Its clips are drawn first, by python "
        "-m jaxdeblur.training.path_clips FOLDER; --data=paths:FOLDER names them.",
        network=dataclasses.replace(_SMALL, m=0, beta0=0.1, over_paths="strcnn_dtb_choice"),
        training=dataclasses.replace(
            _TWO_CORES, steps=4500, crop=128, average=0.999, validate_every=0
        ),
        data=DataConfig(data=("paths:path_clips",), least_blur=0.0),
    ),
    "fsta": Preset(
        about="Factorised spatio-temporal attention, the attention paper's own network (4.37 M "
        "parameters).",
        network=FSTA,
        training=_ATTENTION_PAPER,
        data=_WIDE,
        on_cores="fsta_small",
    ),
    "fsta_concat": Preset(
        about="The attention and the window's features side by side, the quality network (5.71 M "
        "parameters).",
        expect="One GPU of 16 GB. Never trained here: 4 hours on an H200 and 13 on an A100 by "
        "calculation, the result unknown.",
        network=FSTA_CONCAT,
        training=_ATTENTION_PAPER,
        data=_WIDE,
        on_cores="fsta_small",
    ),
    "strcnn_dtb_gopro": Preset(
        about="STRCNN+DTB (1.15 M parameters) on all training videos of GOPRO, Adam at 1e-4 "
        "halved every 200 epochs. Score it with evaluate.py --variant=blur --protocol=basicsr.",
        network=StrcnnConfig(),
        training=dataclasses.replace(_PAPER, schedule="halve", halve_every=200 * _GOPRO_FRAMES),
        data=_GOPRO,
        on_cores="strcnn_dtb_small",
    ),
    "fsta_gopro": Preset(
        about="The attention paper's own network (4.37 M parameters) on all training videos of "
        "GOPRO, with its patches, batches and rate, halved every 200 epochs. Score it with "
        "evaluate.py --variant=blur --protocol=basicsr.",
        network=FSTA,
        training=_ATTENTION_PAPER,
        data=_GOPRO,
        on_cores="fsta_small",
    ),
    "fsta_small": Preset(
        about="fsta_concat for two cores (338 k parameters).",
        expect="Two CPU cores: one took 57 minutes for 12,000 steps on small and large motion, "
        "which gained +1.79 dB on real video of 7 frames averaged, +0.4 more than "
        "strcnn_dtb_small in the same time (docs/results.md).",
        network=FSTA_SMALL,
        training=dataclasses.replace(_TWO_CORES, frames=5),
        data=_NARROW,
    ),
    "fsta_live": Preset(
        about="The paper's own attention network without look-ahead, for live video (635 k "
        "parameters).",
        network=FSTA_LIVE,
        training=dataclasses.replace(_ATTENTION_PAPER, frames=8),
        data=_WIDE,
        on_cores="fsta_small",
    ),
    # The systems of the attention paper's Table 1, at their published size and for two cores.
    "srn": Preset(
        about="SRN color (Tao et al. 2018): a picture at 1/4, 1/2 and full size, each frame by "
        "itself (6.9 M parameters), for one GPU. The authors' recipe, with a cosine for their "
        "polynomial.",
        on_cores="srn_small",
        network=SrnConfig(),
        training=_SRN,
        data=_WIDE,
    ),
    "srn_lstm": Preset(
        about="SRN with a ConvLSTM from size to size, each colour by itself (8.1 M parameters), "
        "for one GPU.",
        on_cores="srn_small",
        network=SrnConfig("lstm"),
        training=_SRN,
        data=_WIDE,
    ),
    "srn_small": Preset(
        about="SRN color at width 4 (109 k parameters) for two cores.",
        network=SrnConfig(width=4),
        training=dataclasses.replace(_TWO_CORES, frames=2, loss="mse"),
        data=_NARROW,
    ),
    "dbn": Preset(
        about="DBN (Su et al. 2017): five frames stacked, an encoder-decoder with batch "
        "normalisation (15.3 M parameters). Its authors' training is not published: the recipe is "
        "SimDeblur's, with a cosine for its steps.",
        on_cores="dbn_small",
        network=DbnConfig(),
        training=_SIMDEBLUR,
        data=_WIDE,
    ),
    "dbn_small": Preset(
        about="DBN at width 12 (546 k parameters) for two cores.",
        network=DbnConfig(width=12),
        training=dataclasses.replace(_TWO_CORES, optimizer="adam"),
        data=_NARROW,
    ),
    "edvr_m": Preset(
        about="EDVR-M (Wang et al. 2019) for deblurring: five frames, aligned by deformable "
        "convolutions, fused by attention (4.0 M parameters), for one GPU. Its authors published "
        "no recipe for deblurring; this is theirs for super-resolution, without its restarts.",
        on_cores="edvr_small",
        network=EDVR_M,
        training=_EDVR,
        data=_WIDE,
    ),
    "edvr_l": Preset(
        about="EDVR-L, 128 channels and 40 blocks (23.6 M parameters), for one GPU: start it from "
        "weights trained with --no-tsa.",
        on_cores="edvr_small",
        network=EDVR_L,
        training=_EDVR,
        data=_WIDE,
    ),
    "edvr_small": Preset(
        about="EDVR with 16 channels and 5 blocks (249 k parameters) for two cores.",
        network=EdvrConfig(width=16, groups=4, extract_blocks=2, blocks=5, head_width=16),
        training=dataclasses.replace(_TWO_CORES, optimizer="adam", learning_rate=4e-4),
        data=_NARROW,
    ),
    "rdn": Preset(
        about="RDN (Wieschollek et al. 2017): the last of five frames, in four steps, normalised "
        "by the batch at hand (3.7 M parameters), with the recipe of its authors' code. A result "
        "depends on the whole frame and on what is restored with it.",
        on_cores="rdn_small",
        network=RdnConfig(),
        training=TrainingConfig(
            steps=400_000,
            batch_size=8,
            frames=1,  # with the four before it
            crop=128,
            learning_rate=5e-3,
            schedule="constant",
            clip_norm=1e6,  # none
            loss="mse",
            validate_every=5000,
        ),
        data=_WIDE,
    ),
    "rdn_small": Preset(
        about="RDN at width 4 (59 k parameters) for two cores.",
        network=RdnConfig(width=4),
        training=dataclasses.replace(
            _TWO_CORES, frames=2, optimizer="adam", learning_rate=5e-3, loss="mse"
        ),
        data=_NARROW,
    ),
    "ifi_rnn": Preset(
        about="IFI-RNN (Nah et al. 2019) C2H3: a recurrent network that goes over each frame four "
        "times (1.6 M parameters), without look-ahead. Network and recipe are ESTRNN's, as the "
        "authors published none.",
        on_cores="ifi_rnn_small",
        network=IfiRnnConfig(),
        training=TrainingConfig(
            steps=130_000,
            batch_size=8,
            frames=8,
            crop=256,
            learning_rate=5e-4,
            loss="charbonnier",
            validate_every=5000,
        ),
        data=_WIDE,
    ),
    "ifi_rnn_small": Preset(
        about="IFI-RNN with 6, 12 and 18 channels (149 k parameters) for two cores.",
        network=IfiRnnConfig(widths=(6, 12, 18), hidden=6, up_widths=(12, 6)),
        training=dataclasses.replace(_TWO_CORES, optimizer="adam"),
        data=_NARROW,
    ),
    "stfan": Preset(
        about="STFAN (Zhou et al. 2019): predicted filters align and deblur (5.4 M parameters), "
        "without look-ahead. Its authors' loss compares features of VGG19 too; here it is the MSE "
        "alone.",
        on_cores="stfan_small",
        network=StfanConfig(),
        training=TrainingConfig(
            steps=122_000,
            batch_size=1,
            frames=20,
            crop=384,
            learning_rate=1e-4,
            clip_norm=1e6,  # none
            loss="mse",
            validate_every=5000,
        ),
        data=_WIDE,
    ),
    "stfan_small": Preset(
        about="STFAN at width 6 (191 k parameters) for two cores.",
        network=StfanConfig(width=6),
        training=dataclasses.replace(_TWO_CORES, optimizer="adam", loss="mse"),
        data=_NARROW,
    ),
}


def find(name: str) -> Preset:
    """The preset of a name.

    Raises:
      UserError: there is none; it lists those there are.
    """
    if name not in PRESETS:
        raise UserError(f"--model={name}: no such preset; there are {', '.join(sorted(PRESETS))}")
    return PRESETS[name]
