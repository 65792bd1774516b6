"""fledgling raises a chat model of your own from raw text to conversation."""

__version__ = "0.1.0"
