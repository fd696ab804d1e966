"""Governance of calls that other people's clients send: hooks on their libraries."""
