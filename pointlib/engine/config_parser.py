"""Parsing of configs and command lines: unknown keys are errors that name the nearest known key."""

from __future__ import annotations

import contextlib
import difflib
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

_UNKNOWN_KEY = (
    re.compile(r"Group '(?P<group>[^']*)' does not accept option '(?P<key>[^']*)'"),
    re.compile(r"Option '(?P<key>[^']*)' is not accepted"),
    re.compile(r"[Uu]nrecognized arguments: --(?P<key>[^ =]+)"),
)


class ConfigParser(LightningArgumentParser):
    """jsonargparse's parser, whose message about an unknown key names the nearest one."""

    def __init__(self, *args: Any, raise_errors: bool = False, **kwargs: Any) -> None:
        """`raise_errors`: errors are ValueError instead of a message and exit status 2."""
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.raise_errors = raise_errors

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Says what is wrong, with a remedy; then status 2, or ValueError."""
        for pattern in _UNKNOWN_KEY:
            found = pattern.search(message)
            if found:
                group = found.groupdict().get("group")
                key = f"{group}.{found['key']}" if group else found["key"]
                message = self.unknown_key_message(key)
                break
        if self.raise_errors:
            raise ValueError(f"config: {message}") from ex
        sys.stderr.write(f"error: config: {message}\n")
        raise SystemExit(2)

    def parse_command(self, args: Sequence[str]) -> Namespace:
        """Parses a command line, after checking the keys of the config files it names."""
        for path in config_files(args):
            if not Path(path).is_file():
                self.error(f"--config must be a file, got {path}, which does not exist")
            try:
                content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
            except yaml.YAMLError as error:
                self.error(f"{path} must be valid YAML, got: {error}")
            self.check_file_keys(content, path)
        return self.parse_args(list(args))

    def unknown_key_message(self, key: str) -> str:
        """What to say about a key that no signature has."""
        known = sorted(self.known_keys())
        nearest = nearest_key(key, known)
        if nearest:
            return f"key must be a known one, got '{key}'; did you mean '{nearest}'?"
        top = sorted({name.split(".")[0] for name in known})
        return (
            f"key must be a known one, got '{key}'; the sections are {', '.join(top)}; see --help"
        )

    def known_keys(self) -> Iterator[str]:
        """All keys that hold a value."""
        for action in self._actions:
            if action.option_strings and action.dest not in ("help", "config", "print_config"):
                yield action.dest

    def check_file_keys(self, content: Any, path: str) -> None:
        """Raises (status 2) when a config file has a key, even an empty one, that no signature has."""
        known = set(self.known_keys())
        groups = {key.rsplit(".", i)[0] for key in known for i in range(1, key.count(".") + 1)}

        def walk(node: Mapping[str, Any], prefix: str) -> None:
            for name, value in node.items():
                key = f"{prefix}{name}"
                optional = (
                    f"{key}.help" in known
                )  # a section that may be null is checked as one value
                if key in groups and isinstance(value, Mapping) and not optional:
                    walk(value, f"{key}.")
                elif key not in known and key not in groups:
                    self.error(f"{path}: {self.unknown_key_message(key)}")

        if not isinstance(content, Mapping):
            self.error(f"{path} must hold a mapping of keys, got {type(content).__name__}")
        walk(content, "")


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """The known key that `key` was most likely meant to be: by its whole path, else by its last part."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if close:
        return close[0]
    leaf = key.rsplit(".", 1)[-1]
    leaves: dict[str, str] = {}
    for name in known:
        leaves.setdefault(name.rsplit(".", 1)[-1], name)
    close = difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.75)
    return leaves[close[0]] if close else None


def config_files(args: Sequence[str]) -> Iterator[str]:
    """Values of --config (-c) on a command line."""
    for position, argument in enumerate(args):
        if argument in ("--config", "-c") and position + 1 < len(args):
            yield args[position + 1]
        elif argument.startswith(("--config=", "-c=")):
            yield argument.split("=", 1)[1]


def plain_config(parser: ConfigParser, config: Namespace) -> dict[str, Any]:
    """Every key with its value, in plain types."""
    with quiet_jsonargparse():
        text = parser.dump(config, skip_none=False, format="yaml")
    content: dict[str, Any] = yaml.safe_load(text)
    content.pop("config", None)
    return content


@contextlib.contextmanager
def quiet_jsonargparse() -> Iterator[None]:
    """Lightning 2.6 calls jsonargparse by names that the latter has renamed; that is no concern of the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
