"""Flowise's bytes and no sockets: requests, answers, streams, usage, flow definitions."""
