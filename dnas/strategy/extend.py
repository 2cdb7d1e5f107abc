"""Extension of a study to a wider space, for `dnas extend`. Earlier trials stay valid; the log holds the changes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dnas.errors import InputError
from dnas.space.space import Choice, Limits, Space
from dnas.strategy.state import SearchState, Trial, with_changes
from dnas.study.config import DEFAULTS, objectives_of, space_of
from dnas.study.folder import StudyFolder


def extend(folder: StudyFolder, wider: Space, limits: Mapping[str, float]) -> list[str]:
    """Replace the space of a study by `wider` with `limits`, and return the changes, one per line.

    Raises:
        InputError: The space is not wider, because a choice or a value is missing, a limit is lower, or the network of
            an earlier trial would change. The study is unchanged.
    """
    settle(folder)
    config = DEFAULTS | folder.config()
    before = space_of(config)
    wider = dataclasses.replace(wider, limits=Limits(**limits), recipe=before.recipe)
    data = config["data"]
    wider = wider.for_data(
        data["channels"], data["image_size"], data["classes"], augmented=data["augmentation"] != "none"
    )
    changes = _changes(before, wider)
    with folder.lock():
        folder.repair_events()
        state = SearchState(objectives_of(config), config["stopping"], config["recipe"]["epochs"])
        state.fold(folder.events())
        params = {number: _at_new_choices(trial, before, wider) for number, trial in sorted(state.trials.items())}
        if not changes:
            return []
        folder.append(
            {
                "event": "widen",
                "space": _table(wider),
                "limits": wider.limits.stated(),
                "before": {"space": config["space"], "limits": config["limits"]},
                "trials": len(state.trials),
                "params": {str(number): values for number, values in params.items() if values},
            }
        )
        settle(folder)
    return changes


def settle(folder: StudyFolder) -> None:
    """Update study.toml from the log. A kill may have prevented the copy of a change of the space or the epochs.

    Raises:
        InputError: The folder is a copy of a study that is stored in a database.
    """
    config = folder.config()
    if "storage" in config:
        raise InputError(
            f"study {folder.name} is stored in a database, and this is a copy; to resume it, use"
            f" `dnas worker {folder.name} --storage URL`."
        )
    settled = with_changes(config, folder.events())
    if settled != config:
        folder.write_config(settled)


def _table(space: Space) -> dict[str, str]:
    return {"name": space.name, "title": space.title, "text": space.text}


def _changes(before: Space, wider: Space) -> list[str]:
    """Return the changes, one per line; raise `InputError` with a list of everything that is missing."""
    new, problems = [], []
    if wider.dataset != before.dataset and before.dataset.partition(":")[0] != "folder":
        problems.append(f"its data set is {wider.dataset}, not {before.dataset}.")
    if wider.family is not before.family:
        problems.append("its networks are of another family.")
    old = {choice.name: choice for choice in before.choices}
    current = {choice.name: choice for choice in wider.choices}
    for name, choice in old.items():
        if name not in current:
            problems.append(f"[choose] {name} is missing; a space can only be widened.")
        elif missing := _missing(choice, current[name]):
            problems.append(f"[choose] {name}: {missing} was allowed before; a space can only be widened.")
        elif current[name] != choice:
            new.append(f"{name}: {choice.describe()} -> {current[name].describe()}")
    new += [f"{name}: new, {choice.describe()}" for name, choice in current.items() if name not in old]
    for name in ("params", "macs", "activation_bytes"):
        low, high = getattr(before.limits, name), getattr(wider.limits, name)
        if high < low:
            problems.append(f"[limits] {name} <= {high:,} is below the study's {low:,}; limits can only be raised.")
        elif high > low:
            new.append(f"{name}: limit {low:,} -> {f'{high:,}' if high < float('inf') else 'none'}")
    if problems:
        raise InputError(f"{wider.name} is not wider than {before.name}:\n  " + "\n  ".join(problems))
    if not new and wider.text != before.text:
        new.append("the text of the file, but no choice or limit")
    return new


def _missing(old: Choice, current: Choice) -> str:
    """Return the values of `old` that `current` lacks, as text; empty if there are none."""
    before, after = old.values(), current.values()
    if before is None or after is None:
        inside = current.kind == old.kind and current.low <= old.low and old.high <= current.high
        return "" if inside and (after is None or before is not None) else f"{old.low:g} to {old.high:g}"
    return ", ".join(str(value) for value in before if value not in after)


def _at_new_choices(trial: Trial, before: Space, wider: Space) -> dict[str, Any]:
    """Return an earlier network's values at the choices that are new in `wider`."""
    spec, family = before.spec_of(trial.params), before.family
    values: dict[str, Any] = {}
    for choice in wider.choices:
        if choice.name in trial.params:
            continue
        value = _value(choice, {**spec.to_dict(), "depth": spec.depth, family.count: len(getattr(spec, family.layers))})
        options = choice.values()
        inside = value in options if options is not None else choice.low <= value <= choice.high
        active = all((trial.params | values).get(name) in allowed for name, allowed in choice.when.items())
        if not inside and not active and options:
            value, inside = options[0], True  # inactive by its `when`, so that any value means the same network
        if not inside:
            raise InputError(
                f"trial {trial.number} has {choice.name} = {value!r}, which {wider.name} does not allow"
                f" ({choice.describe()}); add it."
            )
        values[choice.name] = value
    if wider.spec_of(trial.params | values).digest != trial.digest:
        raise InputError(
            f"trial {trial.number} ({before.name_of(spec)}) would be another network in {wider.name}:"
            " values that both have under [fixed] must agree."
        )
    return values


def _value(choice: Choice, fields: Mapping[str, Any]) -> Any:
    """Return a network's value at `choice`, as the sampler stores it."""
    value = fields[choice.target]
    if choice.name != choice.target:  # an item of a list, such as block_layers_2
        index = int(choice.name.removeprefix(f"{choice.target}_")) - 1
        return value[index] if isinstance(value, list) else value
    return choice.encode(value)
