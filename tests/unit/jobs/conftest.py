"""What tests of both kinds of shared cache put into one."""

from cached_step import files, said  # noqa: F401
