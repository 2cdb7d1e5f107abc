"""Search spaces written in Python."""

from collections.abc import Mapping, Sequence
from typing import Any

import tomli_w

from dnas.errors import InputError
from dnas.space.parse import parse_space
from dnas.space.space import Space as SearchSpace


def Space(
    name: str = "space",
    *,
    choose: Mapping[str, Any],
    family: str = "densenet",
    dataset: str = "digits",
    fixed: Mapping[str, Any] | None = None,
    limits: Mapping[str, float] | None = None,
    recipe: str | Mapping[str, Any] = "fast",
    first: Sequence[Mapping[str, Any]] = (),
    title: str = "",
) -> SearchSpace:
    """Return a search space, the same value as from the TOML file with these tables.

    A study stores the space as the text of that file, which `Space.text` holds.

    Args:
        name: Name of the space, and of its studies.
        choose: The choices by field: `{"int": [low, high]}`, `{"float": [low, high]}` or `{"of": [...]}`, with `step`,
            `times` and `when` as in a file. A list of values is short for `{"of": values}`.
        family: Family of the networks: densenet, resnet, or one of a plugin.
        dataset: Data set, unless the search names another.
        fixed: Fields that all networks share.
        limits: Upper limits on params, macs and activation_bytes.
        recipe: Name of a recipe, or a table with its name and changed fields.
        first: Networks to evaluate first: a value of every choice.
        title: One line that describes the space.

    Raises:
        InputError: With all problems of the space.
    """
    if not isinstance(choose, Mapping):
        raise InputError(f"choose must be a dict such as {{'growth_rate': [12, 24]}}, but got {choose!r}.")
    tables = {
        "fixed": dict(fixed or {}),
        "choose": {field: {"of": list(of)} if isinstance(of, list | tuple) else of for field, of in choose.items()},
        "limits": dict(limits or {}),
        "recipe": {"name": recipe} if isinstance(recipe, str) else dict(recipe),
        "first": [dict(point) for point in first],
    }
    content = {"family": family, "dataset": dataset, **{key: table for key, table in tables.items() if table}}
    try:
        text = tomli_w.dumps(content)
    except TypeError as error:
        raise InputError(f"the space {name} has a value that no space file can hold: {error}.") from None
    return parse_space(f"# {title or name}\n{text}", name, f"the space {name}")
