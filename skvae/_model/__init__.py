"""The variational autoencoder and its training, in tensors."""
