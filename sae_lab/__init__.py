"""Train and study any sparse autoencoder on Llama models, in Jupyter."""
