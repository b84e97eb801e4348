"""Makes what the Repair tab opens with: `python assets/make_story.py` writes assets/analyses/digits-repair.json."""

from dataclasses import replace

from mergelab import result
from mergelab.lab.lab import Lab
from mergelab.lab.repair import RepairLab
from mergelab.repair.outcome import Trial
from mergelab.repair.stories import STORIES, STORY


def main() -> None:
    recipe, align = next(iter(STORIES.values()))
    told = result(RepairLab(Lab(device="cpu")).tell(Trial(recipe), align))
    STORY.write_text(replace(told.outcome, seconds=0.0).to_json(), encoding="utf-8")


if __name__ == "__main__":
    main()
