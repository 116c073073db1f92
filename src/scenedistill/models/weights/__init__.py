"""Loading of pretrained tensors from files of several formats into a network."""
