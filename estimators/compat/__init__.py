"""Drop-ins: ``vae`` for the losses of well-known VAE code, ``nn_functional`` for torch's own, and
what ``beta`` they amount to.
"""
