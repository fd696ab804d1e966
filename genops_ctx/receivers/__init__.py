"""What listens: receivers of usage that others report, and the model proxy. Servers, off until started.

from genops_ctx.receivers import Receivers

with Receivers(key="…", port=9317) as receivers:
    ...  # Flowise exports to receivers.url
"""

from .server import ReceiverApp, Receivers

__all__ = ["ReceiverApp", "Receivers"]
