"""Flowise: adapters, pricing, validation, errors."""
