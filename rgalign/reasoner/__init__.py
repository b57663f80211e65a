"""Token ids of a prompt -> latent query. ``hf`` is the definition every faster engine is tested against."""
