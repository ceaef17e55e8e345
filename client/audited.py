"""The hospital as `ghostnet audit mechanism` runs it: the real site, its ledger and its policy, over drawn patients.

Only the patients are put where it would have read them; no file of a hospital is touched.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from client.cohort import Cohorts
from client.config import load_site
from client.intake.summary import IntakeTable
from client.requests import Publication
from client.site import Site
from client.site_toml import write_site
from ghostnet.accounting.plan_cost import plan_events
from ghostnet.audit.every_release import Build
from ghostnet.exchange import pooled
from ghostnet.exchange.arrays import Arrays, arrays_sha256
from ghostnet.exchange.messages import JoinAnswer
from ghostnet.plan import ImageSpec, Plan
from ghostnet.privacy.noise import Entropy
from ghostnet.sampler.folder import WEIGHTS_FILE, file_names, sha256, texts
from ghostnet.training import loop, perceptual
from ghostnet.training.cohort import Cohort

_SETTINGS: dict[str, object] = {
    "data.kind": "npz",
    "data.path": "drawn.npz",
    "policy.max_epsilon": 100_000.0,
    "policy.max_coalition_epsilon": 100_000.0,
    "policy.delta": 1e-5,
}


class AuditedSite:
    """`ghostnet.audit.hospitals.Hospital` over a real site.

    Args:
        site: asked for everything.
    """

    def __init__(self, site: Site) -> None:
        self._site = site

    def join(self, plan: Plan, run_id: str) -> JoinAnswer:
        """See `Site.join`."""
        return self._site.join(plan, run_id)

    def warm_start(self, plan: Plan, run_id: str) -> Arrays:
        """See `Site.warm_start`."""
        return self._site.warm_start(plan, run_id)

    def train(self, plan: Plan, run_id: str, server_round: int, weights: Arrays, released_mean: Arrays) -> Arrays:
        """See `Site.train`."""
        return self._site.train(plan, run_id, server_round, weights, released_mean)

    def step(self, plan: Plan, run_id: str, step: int, discriminator: Arrays, roster: str) -> Arrays:
        """See `Site.step`."""
        return self._site.step(plan, run_id, step, discriminator, roster)

    def finish(self, plan: Plan, run_id: str, generator: Arrays, public: Arrays) -> Arrays:
        """The arrays of `Site.finish`, for a sampler of these weights whose picture and transcript are any."""
        weights = arrays_sha256(generator)
        files = dict.fromkeys(file_names(plan), "0" * 64) | {WEIGHTS_FILE: weights}
        written = texts(plan, run_id=run_id, weights_sha256=weights)
        files |= {name: sha256(content) for name, content in written.items()}
        return self._site.finish(plan, run_id, generator, public, Publication(files=files))[0]

    def close(self) -> None:
        """See `Site.close`."""
        self._site.close()


def open_site(folder: Path, name: str, cohort: Cohort, image: ImageSpec, entropy: Entropy | None) -> AuditedSite:
    """A hospital with a state folder of its own.

    Args:
        folder: empty.
        name: of the hospital.
        cohort: drawn patients, for training and for the utility figures alike.
        image: of the plans that it will be asked for.
        entropy: of its coins and its noise; None leaves it its own.
    """
    file = folder / "site.toml"
    write_site(file, _SETTINGS | {"name": name})
    np.savez(folder / "drawn.npz", images=np.zeros((1, image.size, image.size), np.uint8), patient=["drawn"])
    site = Site(load_site(file))
    site._loaded = (image, Cohorts(train=cohort, test=cohort, table=IntakeTable(kind="npz", found=0, taken=0)))
    if entropy is not None:
        site._entropy = entropy  # type: ignore[assignment]
    return AuditedSite(site)


HOSPITAL = Build(
    name="hospital",
    train_round=loop.train_round,
    noised_share=pooled.noised_share,
    noised_features=perceptual.noised_features,
    plan_events=plan_events,
    open_hospital=open_site,
)
"""What this installation runs and accounts."""
