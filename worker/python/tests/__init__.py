"""Tests of the trainer's package: standard library only. ``python3 -m unittest`` in ``worker/python`` runs them."""
