"""Spans out of frozen records; nothing is done where no SDK is set up."""
