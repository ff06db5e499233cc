"""What every tokenizer does with a text before it is cut up."""

from __future__ import annotations

from rllama.errors import ConfigError

_MAX_TEXT_BYTES = 2**31 - 1  # the libraries count in int32


def utf8(text: str) -> bytes:
    """A text as UTF-8; lone surrogates become U+FFFD, pairs of them the character they mean.

    Raises:  ConfigError if it has 2^31 bytes or more
    """
    try:
        data = text.encode()
    except UnicodeEncodeError:
        data = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
    if len(data) > _MAX_TEXT_BYTES:
        raise ConfigError(f"a text of {len(data)} bytes is too long; the most is 2^31 - 1")
    return data
