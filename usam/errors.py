"""The error type for everything that the user can fix."""


class UserError(Exception):
    """An error that the user can fix: its message says in one line what is wrong, where, and what to do."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: IPython asks."""
        return [f"{type(self).__name__}: {self}"]


class Collapse(UserError):
    """Training has ended in a state that tells nothing apart: a result, which a comparison reports and goes on."""
