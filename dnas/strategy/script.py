"""Commands that repeat a study, from its folder."""

from dnas.strategy.state import stages
from dnas.study.commands import Script, list_script, search_script
from dnas.study.config import LIST
from dnas.study.folder import StudyFolder


def script_of(folder: StudyFolder) -> Script:
    """Return the commands that repeat a study in an empty folder; none if its files do not determine them."""
    config, project = folder.config(), folder.project
    try:
        if config.get("kind") == LIST:
            return list_script(config, project)
        return search_script(stages(config, folder.events()), project)
    except (LookupError, TypeError, ValueError) as error:  # an InputError is a ValueError
        reason = f"they have no {error}." if isinstance(error, KeyError) else str(error)
        return Script(notes=(f"The commands cannot be derived from the files of this study: {reason}",))
