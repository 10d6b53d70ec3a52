"""Commands and their options: one for each field of a configuration."""

import argparse
import types
import typing
from dataclasses import fields

from rtl_core.choices import CHOICES


def add_command(commands, name: str, function, text: str) -> argparse.ArgumentParser:
    """Adds a command that `function` carries out, with `--json`; returns its parser."""
    sub = commands.add_parser(name, help=text, description=text)
    # argparse keeps the options of a parser here, and has no public name for it
    sub.set_defaults(command=function, name_of_command=name, options=sub._option_string_actions)
    sub.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return sub


def add_settings(parser: argparse.ArgumentParser, config: type, leave_out: tuple = ()) -> None:
    """Adds one option for each field of a configuration."""
    group = parser.add_argument_group("settings")
    types_of = typing.get_type_hints(config)
    for f in (f for f in fields(config) if f.name not in leave_out):
        kinds = typing.get_args(types_of[f.name]) or (types_of[f.name],)
        optional, words = types.NoneType in kinds, f.metadata.get("words", ())

        def read(text: str, kind=kinds[0], optional=optional, words=words):
            if text in words:
                return text
            return None if optional and text == "none" else kind(text)

        read.__name__ = kinds[0].__name__  # argparse names it in its messages
        group.add_argument(
            f"--{f.name.replace('_', '-')}",
            type=read, default=argparse.SUPPRESS, choices=CHOICES.get(f.name), metavar=None if f.name in CHOICES
            else kinds[0].__name__.upper(), help=f"{f.metadata['help']} (default: {f.default})",
        )  # fmt: skip
