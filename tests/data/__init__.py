"""Tests of fledgling.data."""
