"""The roster of hospitals that take part in a pooled run, as the coordinator makes it of their answers."""

from __future__ import annotations

from collections.abc import Sequence

from client.site import Site
from ghostnet.exchange.secure_sum import Member, Roster, make_roster
from ghostnet.plan import Plan


def join_all(sites: Sequence[Site], plan: Plan, run_id: str) -> Roster:
    """Every hospital joins the run and is listed with the keys it announced."""
    joined = [site.join(plan, run_id) for site in sites]
    members = [
        Member(site=j.name, public_key=j.public_key, mask_key=j.mask_key, signature=j.mask_key_signature)
        for j in joined
    ]
    return make_roster(run_id=run_id, plan_hash=plan.hash(), hospitals=len(sites), members=members)
