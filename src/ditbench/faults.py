"""The one exception for what a user can mend."""


class Fault(Exception):
    """Something the user can put right; its message is one sentence that says what was found and what to do."""
