"""The edges of BP-Transformer's graph, walked token by token as the paper tells it."""


def sizes_of(n):
    sizes = [n]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes


def label(step, clip, level, place, side):
    return (2 * step + 1) * min(level, clip) + 2 * place + side


def edges(n, step, clip, causal):
    """(token, node that it reads, label), the token itself included."""
    sizes, found = sizes_of(n), []
    first = [sum(sizes[:level]) for level in range(len(sizes))]
    for i in range(n):
        found.append((i, i, 0))
        left, right = i, n if causal else i + 1  # tokens before and from here on are still to be read
        for level in range(len(sizes)):
            span = 2**level
            for place in range(step):
                if left > 0 and left % span == 0:
                    found.append((i, first[level] + left // span - 1, label(step, clip, level, place, 1)))
                    left -= span
                elif left > 0:
                    half = first[level - 1] + 2 * ((left - 1) // span)
                    found.append((i, half, label(step, clip, level, place, 1)))
                    left -= span // 2
                if right < n and right % span == 0:
                    found.append((i, first[level] + right // span, label(step, clip, level, place, 2)))
                    right += span
                elif right < n:
                    half = first[level - 1] + 2 * (right // span) + 1
                    found.append((i, half, label(step, clip, level, place, 2)))
                    right += span // 2
    return found


def stray_edges(n, step, clip):
    """What the authors' builder adds: it does not notice that a second half does not exist."""
    sizes, found = sizes_of(n), []
    for i in range(n):
        pointer, half = i + 1, False
        for level, size in enumerate(sizes):
            if half and pointer < size and 2 * pointer + 1 >= sizes[level - 1]:
                found.append((i, sum(sizes[:level]), label(step, clip, level, 0, 2)))
            pointer, half = (pointer + step) // 2, (pointer + step) % 2 == 1
    return found
