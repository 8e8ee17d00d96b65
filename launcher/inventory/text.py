"""Foreign text made fit to show: a terminal must not obey what a driver or an engine printed. Pure."""


def printable(text: str) -> str:
    """Return the text with every character that cannot be shown, line ends included, replaced by U+FFFD."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)
