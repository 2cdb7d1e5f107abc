"""Template of a new space file, with comments that state what can be written in each table."""

import json

from dnas.arch.families import family_of
from dnas.data.catalog import data_info

CHOICES = {
    "densenet": """\
growth_rate   = { int = [8, 24], step = 4 }          # 8, 12, 16, 20 or 24
block_layers  = { int = [2, 8], times = 3 }          # one choice for each of three blocks
compression   = { float = [0.3, 1.0], step = 0.1 }
bottleneck    = { of = [0, 4] }                      # 0: no bottleneck
# stem_channels = { of = [16, 24], when = { bottleneck = 0 } }   # a choice that exists only without a bottleneck
""",
    "resnet": """\
width         = { int = [8, 24], step = 4 }          # 8, 12, 16, 20 or 24; each later stage doubles it
stage_units   = { int = [1, 4], times = 3 }          # one choice for each of three stages
bottleneck    = { of = [0, 4] }                      # 0: basic units
# stochastic_depth = { of = [0.2, 0.5], when = { bottleneck = 0 } }   # a choice that exists only for basic units
""",
}
TITLES = {"densenet": "DenseNets", "resnet": "Pre-activation ResNets"}
FIRST = {
    "densenet": "growth_rate = 12\nblock_layers = [4, 4, 4]\ncompression = 0.5\nbottleneck = 4\n",
    "resnet": "width = 16\nstage_units = [2, 2, 2]\nbottleneck = 0\n",
}


def space_template(name: str, family: str, dataset: str) -> str:
    """Return the text of a valid space file.

    Args:
        name: Name of the space.
        family: Family of its networks, a key of `dnas.arch.FAMILIES`.
        dataset: Data set that its networks are trained on, as for `data_info`.

    Raises:
        InputError: For an unknown family or data set.
    """
    roles, info = family_of(family), data_info(dataset)
    width = roles.width
    choices = CHOICES.get(family) or (
        f"{width} = {{ int = [8, 24], step = 4 }}   # 8, 12, 16, 20 or 24\n"
        f"{roles.layers} = {{ int = [1, 4], times = 3 }}   # one choice for each of three {roles.count}\n"
    )
    first = FIRST.get(family, f"{width} = 16\n{roles.layers} = [2, 2, 2]\n")
    # Fixed for large images, an example for smaller ones, and absent where it would leave no pixel.
    size = info.image_size or 32
    stem = f'{"# " if size < 100 else ""}stem = "imagenet"' if size >= 32 and "stem" in roles.fields else ""
    stem_line = f"{stem:32s}# a 7×7 convolution of stride 2 and a pool, for large images\n" if stem else ""
    return f"""\
# {TITLES.get(family, f"Networks of the family {family}")} for {" ".join(info.title.split())}
# Run:     dnas search --space {name} --trials 50 --dry-run
# The first line is the title that `dnas spaces` lists. docs/spaces.md describes this format.
family = "{family}"
dataset = {json.dumps(dataset, ensure_ascii=False)}

[fixed]                         # fields that all networks share; fields that are not stated have their defaults
{stem_line}# {width + ' = "fit"':30s}# the largest that the limits allow, instead of the choice below

[choose]                        # one line for each choice
{choices}
[limits]                        # no proposed network exceeds any of them
params = 1_000_000
# macs = 100_000_000
# activation_bytes = 500_000_000   # of a training step, at the recipe's batch size

[recipe]                        # fast or paper, and any field of a recipe that differs from it
name = "fast"
epochs = {min(30, info.paper_epochs)}

[[first]]                       # networks to train before any is proposed; repeat the table for more, or delete it
{first}"""
