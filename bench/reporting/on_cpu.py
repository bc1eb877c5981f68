"""What ``fused_elbo`` is on a CPU, wherever a report has to say it."""

NOTE = (
    "No GPU here, so **no Triton kernel was timed**: on a CPU `fused_elbo` is its PyTorch "
    "reference, and Triton's interpreter is for tests only. These figures say what a CPU user "
    "gets by choosing between the providers; they say nothing about the kernels."
)
UNDER_TITLES = "here fused_elbo is its PyTorch reference: the kernels need a GPU"
OF_SAMPLES = (
    "On a CPU these are the public functions on their PyTorch reference: no kernel is in these "
    "figures."
)
IN_HEADERS = "PyTorch reference, "
