"""What listens: receivers of usage that others report, and the model proxy. Servers, off until started."""
