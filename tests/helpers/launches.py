"""Which launchers run, of whatever backend."""

from fused_elbo.kernels import library


def watch(monkeypatch):
    """The names of the launchers that are called from now on, in a list that grows."""
    ran, real = [], library.launcher

    def launcher(folder, family, name):
        ran.append(name)
        return real(folder, family, name)

    monkeypatch.setattr(library, "launcher", launcher)
    return ran
