"""Tested, notebooks train on a fifth of the tokens that they show; in one of several processes, each on one thread."""

import os

os.environ.setdefault("SAE_LAB_TOKENS", "204800")
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

LONGEST = (
    "02_every_variant.ipynb",
    "03_how_good_is_it.ipynb",
    "00_tour.ipynb",
    "01_first_sae.ipynb",
    "04_what_do_latents_mean.ipynb",
    "07_steering.ipynb",
    "10_remote_and_many.ipynb",
    "09_llama_scope.ipynb",
    "05_splitting_and_geometry.ipynb",
    "06_same_data_different_seeds.ipynb",
    "08_add_your_own.ipynb",
    "test_readme.py",
    "test_cli.py",
    "test_stories.py",
    "test_lab.py",
    "test_tour.py",
)


def pytest_collection_modifyitems(items):
    """The longest files first: one that comes last would be waited for."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
