"""PTX text into statements."""

import re

from .faults import Fault


def statements(body):
    """(label or None, predicate, opcode, operands) of each; of nested scopes names are made apart.

    Also the registers: {name: bits}.
    """
    lines = []
    for line in body.splitlines():
        line = line.split("//")[0].strip()
        if line and not re.match(r"\.(loc|file|section|pragma)\b", line):
            lines.append(line)
    text, registers, found, scopes, count = "\n".join(lines), {}, [], [{}], 0
    position = 0
    token = re.compile(r"\s*(?:([$\w]+):|(\{)|(\})|([^;]*);)", re.S)
    while position < len(text):
        if not text[position:].strip():
            break
        match = token.match(text, position)
        if not match:
            raise Fault(f"cannot read {text[position : position + 80]!r}")
        position = match.end()
        label, opened, closed, statement = match.groups()
        if label:
            found.append((label, None, None, None))
        elif opened:
            scopes.append({})
        elif closed:
            scopes.pop()
        elif statement.strip():
            statement = " ".join(statement.split())
            if statement.startswith(".reg"):
                _, kind, names = statement.split(" ", 2)
                bits = 1 if kind == ".pred" else int(re.search(r"\d+", kind)[0])
                for name in names.split(","):
                    name = name.strip()
                    several = re.fullmatch(r"(%?\w+)<(\d+)>", name)
                    if several:
                        names_of = [f"{several[1]}{i}" for i in range(int(several[2]))]
                    else:
                        count += 1
                        scopes[-1][name] = f"%{name.strip('%')}_scope{count}"
                        names_of = [scopes[-1][name]]
                    registers.update(dict.fromkeys(names_of, bits))
                continue
            if statement.startswith("."):
                raise Fault(f"directive {statement!r}")
            for scope in scopes[1:]:
                for name, other in scope.items():
                    statement = re.sub(rf"(?<![%\w.]){re.escape(name)}(?![\w.])", other, statement)
            predicate = None
            if statement.startswith("@"):
                predicate, statement = statement[1:].split(" ", 1)
            opcode, _, rest = statement.strip().partition(" ")
            operands = [o.strip() for o in re.split(r",(?![^{\[]*[}\]])", rest)] if rest else []
            found.append((None, predicate, opcode, operands))
    return found, registers


def matching(text):
    """Where the brace that is open at the start is closed."""
    depth = 1
    for match in re.finditer(r"[{}]", text):
        depth += 1 if match[0] == "{" else -1
        if depth == 0:
            return match.start()
    raise Fault("braces")
