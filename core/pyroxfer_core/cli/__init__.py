"""The commands of the core, and what every command of the product begins with."""

from .group import CommandGroup as CommandGroup
