"""Settings as YAML: read from files of users and runs, old ones too, and written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from exitwise.catalogue.axes import chosen_in, options_of_others
from exitwise.errors import UserError
from exitwise.settings.schema import Settings, check_values


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Return settings from a YAML file.

    Raises:
        UserError: if there is no such file, or it is no mapping of settings.
    """
    content = read_mapping(path, "settings")
    try:
        check_values({key: value for key, value in content.items() if key != "recipe"})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return _without_strangers(content)


def read_mapping(path: str | Path, what: str) -> dict[str, Any]:
    """Return the keys and values of a YAML file; ``what`` says what they are.

    Raises:
        UserError: if there is no such file, or it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"expected a YAML file of {what}; found none at {path}")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"expected YAML in {path}; {line}{error.problem}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"expected YAML in {path}; {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise UserError(f"expected 'key: value' lines in {path}; got values within values without end") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"expected {what} as 'key: value' lines in {path}; got a {type(content).__name__}")
    return content


def _without_strangers(content: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a file, without what a run's ``config.yaml`` once stated of methods that it did not use.

    Such a file tells itself from one that a user wrote by stating the options of all methods.
    """
    if not content.keys() >= _ONCE_STATED:
        return content
    strangers = options_of_others(chosen_in(content))
    return {key: value for key, value in content.items() if key not in strangers}


_ONCE_STATED = frozenset(
    {"exit_weights", "p", "proportions", "p_range", "objective", "gradient", "epsilon", "centering", "meta_interval"}
) | {f"wpn_{name}" for name in ("input", "hidden", "layers", "zero_init", "lr", "weight_decay")}
"""Options that ``config.yaml`` stated whatever the method, until it came to state the settings that count."""


class _Loader(yaml.SafeLoader):
    """YAML of plain values, without Python objects, in which a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(None, None, "expected a name as key", key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def to_yaml(settings: Settings) -> str:
    """Return the settings that count as YAML, in the schema's order: without options of other methods."""
    return yaml.safe_dump(settings.stated(), sort_keys=False, default_flow_style=None)
