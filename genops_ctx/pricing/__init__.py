"""What tokens and plans cost, and how many tokens a text probably is."""
