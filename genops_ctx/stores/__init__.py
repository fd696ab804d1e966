"""Where accounts live. One protocol, several back ends."""
