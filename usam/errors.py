"""The one error that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something that the user can mend: the message says what, where and how, in one line."""

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows of it: IPython asks."""
        return [f"UserError: {self}"]
