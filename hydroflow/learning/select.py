"""Selection: which of the uncertain frames are worth a DFT label."""

from __future__ import annotations

from collections import Counter

import numpy as np

from hydroflow.arrays import StructureArrays
from hydroflow.structures.fingerprints import fingerprints


def select_diverse(frames: StructureArrays, count: int, per_trajectory: int, rng: np.random.Generator) -> np.ndarray:
    """Indices of up to `count` frames, spread over compositions, trajectories and structure space.

    Compositions take turns (a quota without a fixed number); within a composition the next frame is the one farthest
    from everything chosen so far in fingerprint space (farthest-point selection, Gonzalez 1985), and no trajectory gives
    more than `per_trajectory` frames. Ties go to the larger force deviation.

    Parameters
    ----------
    frames
        Needs columns ``id`` (trajectory) and ``max_deviation_ev_a``.
    """
    if not len(frames) or count < 1:
        return np.zeros(0, np.int64)
    formulas = np.array(frames.formulas())
    trajectory = frames.columns["id"].astype(str)
    deviation = frames.columns["max_deviation_ev_a"]
    features = fingerprints(frames).reshape(len(frames), -1)
    # One starting frame per composition: the most uncertain one.
    pools = {f: np.flatnonzero(formulas == f) for f in sorted(set(formulas))}
    order = rng.permutation(len(pools))
    queue = [list(pools)[i] for i in order]
    distance = {f: np.full(len(pool), np.inf) for f, pool in pools.items()}
    used: dict[str, int] = {}
    chosen: list[int] = []
    while queue and len(chosen) < count:
        for f in list(queue):
            if len(chosen) >= count:
                break
            pool = pools[f]
            open_ = np.array([used.get(t, 0) < per_trajectory for t in trajectory[pool]])
            open_ &= distance[f] > 0
            if not open_.any():
                queue.remove(f)
                continue
            score = np.where(open_, distance[f], -1.0)
            best = np.flatnonzero(score == score.max())
            k = int(best[np.argmax(deviation[pool[best]])])
            chosen.append(int(pool[k]))
            used[trajectory[pool[k]]] = used.get(trajectory[pool[k]], 0) + 1
            gap = np.linalg.norm(features[pool] - features[pool[k]], axis=1)
            distance[f] = np.minimum(distance[f], gap)
            distance[f][k] = 0.0
    return np.array(chosen, np.int64)


def select_uncertain(
    frames: StructureArrays, trust_high_ev_a: float, count: int, per_trajectory: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of up to `count` frames by :func:`select_diverse`: within the trust window and, where these are too few, beyond it.

    A model that is uncertain beyond the window everywhere would otherwise learn nothing, and be as uncertain in every later
    iteration. The frames beyond are the least unreliable ones, of trajectories that have none within.

    Returns
    -------
    within, beyond : arrays of indices
    """
    deviation = frames.columns["max_deviation_ev_a"]
    inside = np.flatnonzero(deviation <= trust_high_ev_a)
    within = inside[select_diverse(frames[inside], count, per_trajectory, rng)]
    trajectory = frames.columns["id"].astype(str)
    outside = np.flatnonzero((deviation > trust_high_ev_a) & ~np.isin(trajectory, trajectory[within]))
    missing = count - len(within)
    used: Counter[str] = Counter()
    least: list[int] = []
    for i in outside[np.argsort(deviation[outside], kind="stable")]:
        if used[trajectory[i]] < per_trajectory and len(least) < per_trajectory * missing:
            used[trajectory[i]] += 1
            least.append(int(i))
    pool = np.array(least, np.int64)
    return within, pool[select_diverse(frames[pool], missing, per_trajectory, rng)]


def select_relaxed(
    relaxed: StructureArrays,
    distance_to_hull_ev: np.ndarray,
    count: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Which relaxed structures stage 2 labels.

    A third are those nearest the hull, a third a plain random sample, a third the most uncertain in enthalpy.

    Returns
    -------
    assessed, extra : arrays of indices
        The error of stage 2 is measured on `assessed` (near the hull and random); the uncertain `extra` only train, since
        an error measured on structures chosen for being uncertain would be too large.
    """
    n = len(relaxed)
    third = max(1, count // 3)
    near = np.argsort(distance_to_hull_ev, kind="stable")[:third]
    rest = np.setdiff1d(np.arange(n), near)
    random = rng.choice(rest, min(third, len(rest)), replace=False) if len(rest) else rest
    rest = np.setdiff1d(rest, random)
    uncertain = rest[np.argsort(-relaxed.columns["enthalpy_deviation_ev"][rest], kind="stable")]
    return np.concatenate([near, np.sort(random)]), uncertain[: max(0, count - len(near) - len(random))]
