"""The suite that needs no GPU: what the kernels' machine code says, and the gates it is held to."""
