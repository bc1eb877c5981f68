"""The roofline that the machine code predicts. No torch."""

from matplotlib.figure import Figure

COLUMNS = 64  # in a row, of the kernels that are shown
# Measured copy bandwidth in TB/s, and instructions per second if every lane issues one per cycle.
CHIPS = {"H100": (3.0, 132 * 4 * 32 * 1.755e9), "H200": (4.3, 132 * 4 * 32 * 1.755e9)}


def chart(rows, path):
    """Instructions against bytes per element; under a chip's line its memory is the bound."""
    figure = Figure(figsize=(8, 5.2), layout="constrained")
    axes = figure.subplots()
    byte_range = (0, 40)
    for chip, style in zip(CHIPS, ("-", "--"), strict=True):
        terabytes, issue = CHIPS[chip]
        slope = issue / (terabytes * 1e12)
        label = f"{chip}: issue time = memory time at {terabytes} TB/s"
        axes.plot(byte_range, [slope * x for x in byte_range], style, color="0.3", label=label)
    colours = {"float32": "#0072B2", "bfloat16": "#D55E00"}  # Okabe-Ito
    markers = {"forward": "o", "backward": "s", "gradient": "D"}
    for row in rows:
        if row["columns"] != COLUMNS or row["dtype"] not in colours:
            continue
        if row["contract_bytes"] is None:  # what it moves is not counted per element
            continue
        x, y = row["bytes_per_element"], row["instructions_per_element"]
        marker = markers.get(row["kernel"].split()[-1])
        if marker is None:
            continue
        axes.plot(x, y, marker, color=colours[row["dtype"]], markersize=6)
        if row["kernel"] in ("rsample_kl forward", "rsample_kl backward"):
            offset = (6, -3) if row["dtype"] == "float32" else (4, 7)
            axes.annotate(row["kernel"], (x, y), offset, textcoords="offset points", fontsize=7)
    for dtype, colour in colours.items():
        axes.plot([], [], "o", color=colour, label=dtype)
    for role, marker in markers.items():
        name = {"gradient": "forward + gradient"}.get(role, role)
        axes.plot([], [], marker, color="0.5", label=name)
    axes.set(
        xlim=byte_range,
        ylim=(0, 100),
        xlabel="bytes moved per element",
        ylabel="instructions issued per element",
        title="Below a line the kernel is bound by memory (sm_90, rows of 64, predicted)",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110, metadata={"Software": None})
