"""The Python interface: searches, ablations, training of one network, and studies."""
