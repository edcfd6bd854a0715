"""The one error that is meant for the person at the keyboard."""


class UserError(Exception):
    """Something that the user can mend: the message says what, where and how, in one line."""
