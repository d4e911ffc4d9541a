"""From a latent code to the vertices of a template."""
