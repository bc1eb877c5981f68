"""The gates that CI holds the machine code of the sm_90 kernels to."""

import json
import math
from pathlib import Path

GATES = Path(__file__).with_name("gates.json")
UNALIGNED = 33  # columns, whose rows are read one by one: no spills there either, and no other gate
# Limits that do not move with what is reached (float32, instructions per element).
CEILINGS = {
    "rsample_kl forward": 70,
    "rsample_kl backward": 70,
    "rsample_log_ratio forward": 60,
    "gaussian_kl forward": 30,
    "gaussian_nll forward": 20,
    "categorical_nll forward": 44,
    "categorical_nll backward": 38,
    "categorical_nll forward + gradient": 56,
    # A latent of a pair: a difference, a product and a sum; in backward, which computes the pairs
    # again, four operations more.
    "mixture_log_prob forward": 4.2,
    "mixture_log_prob backward of z": 9.5,
    "mixture_log_prob backward of components": 9,
    # A difference, a product, a square, the greatest, a shift, an exponential and a sum; stratified
    # weights add two comparisons and what they choose.
    "marginals_log_prob forward": 9,
    "marginals_log_prob stratified forward": 14,
    "marginals_log_prob backward of z": 11,
    "marginals_log_prob backward of components": 12,
    # A mixture of a pixel, of which a tile holds 16 for 10: 12 exponentials and as many quotients.
    "discretized_mix_logistic_nll forward": 545,
    "discretized_mix_logistic_nll backward": 730,
    "discretized_mix_logistic_nll forward + gradient": 730,
}
# Exponentials per element. Each takes a multiprocessor as long as eight other instructions.
EXPONENTIALS = 1.05


def key(row):
    return f"{row['kernel']} | {row['dtype']} | {row['columns']}"


def check(rows, gates):
    """The faults, a line for each."""
    problems = []
    for row in rows:
        if row["stack"] or row["local"]:
            problems.append(f"{key(row)}: stack {row['stack']}, local {row['local']}")
        if row["columns"] == UNALIGNED:
            continue
        reached = row["instructions_per_element"]
        ceiling = CEILINGS.get(row["kernel"], math.inf) if row["dtype"] == "float32" else math.inf
        if row["contract_bytes"] is None:
            exponentials = row.get("exponentials_per_element", 0)
            if row["kernel"].startswith("marginals") and exponentials > EXPONENTIALS:
                problems.append(f"{key(row)}: {exponentials} exponentials per element")
            if reached > ceiling:
                problems.append(
                    f"{key(row)}: {reached} instructions per element, the gate is {ceiling}"
                )
            continue
        if row["bytes_per_element"] != row["contract_bytes"]:
            problems.append(
                f"{key(row)}: {row['bytes_per_element']} bytes per element in 128-bit accesses, "
                f"the contract is {row['contract_bytes']} ({row['global_accesses']})"
            )
        limit = min(gates.get(key(row), -math.inf), ceiling)
        if reached > limit:
            problems.append(
                f"{key(row)}: {reached} instructions per element, the gate is {limit}"
                if key(row) in gates
                else f"{key(row)}: no gate; run python -m bench.static --set-gates"
            )
    return problems


def load():
    return json.loads(GATES.read_text())


def save(rows):
    """Gates 10 % above what these rows reach."""
    judged = (row for row in rows if row["contract_bytes"] is not None)
    gates = {key(row): round(1.1 * row["instructions_per_element"], 2) for row in judged}
    GATES.write_text(json.dumps(gates, indent=1) + "\n")
