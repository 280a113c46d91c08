"""A campaign is frozen when it is started: a changed file is refused, a newer hydroflow is not."""

from __future__ import annotations

import json

import pytest

from hydroflow.campaign import parse
from hydroflow.errors import CampaignError
from hydroflow.store.documents import Run
from hydroflow.store.runs import open_run

pytestmark = pytest.mark.service

FILE = 'name = "x"\n[space]\nelements = ["Ca", "Y"]\n'


def test_a_changed_campaign_is_refused_with_its_keys(store):
    open_run(parse(FILE))
    open_run(parse(FILE + '[clusters.big]\nbatch = "Slurm"\n'))  # where it runs is no part of the result
    with pytest.raises(CampaignError) as caught:
        open_run(parse(FILE + "[funnel]\nehull_lam_ev = 0.08\n[labels]\ncores = 2\n"))
    assert "changed: funnel.ehull_lam_ev, labels.cores" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_record_from_before_a_key_existed_goes_on(store):
    run = open_run(parse(FILE))
    text = json.loads(run.text)
    del text["funnel"]["ehull_dft_ev"]
    Run.objects.update_one(set__text=json.dumps(text), set__digest="of an older version")
    assert open_run(parse(FILE)).campaign == "x"
    with pytest.raises(CampaignError, match=r"funnel\.ehull_dft_ev"):
        open_run(parse(FILE + "[funnel]\nehull_dft_ev = 0.08\n"))
