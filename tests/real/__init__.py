"""Tests against the real Flowise, which they install, start and stop themselves."""
