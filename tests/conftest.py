"""Settings of every test: hypothesis sets no time limit on an example, because a busy machine would fail it."""

from hypothesis import settings

settings.register_profile("fledgling", deadline=None)
settings.load_profile("fledgling")
